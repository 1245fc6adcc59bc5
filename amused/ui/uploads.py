"""A gate for files: events of the page get only files from the page's own upload folder.

Gradio (6.31) checks only file data with the key "meta", downloads what is given by URL, and reads file data without
"meta" from anywhere on the machine. So this check runs before Gradio's own code and before any handler.
"""

from __future__ import annotations

import os
import stat
from typing import Any

import gradio as gr
from gradio import utils

from amused.errors import UserError, is_disk_full
from amused.ui.explain import explain

NOT_UPLOADED = "This file was not uploaded to this page: upload it and try again."


class GatedBlocks(gr.Blocks):
    """Blocks whose events refuse files from outside the upload folder, and answer our errors with a sentence."""

    async def process_api(self, block_fn: Any, inputs: list[Any], *args: Any, **more: Any) -> dict[str, Any]:
        event_data = more.get("event_data")
        try:
            if more.get("iterator") is None:  # otherwise a later step of a run, whose inputs are checked already
                check_files([inputs, None if event_data is None else event_data._data])
            return await super().process_api(block_fn, inputs, *args, **more)
        except (UserError, OSError) as error:
            if isinstance(error, UserError) or is_disk_full(error):
                raise gr.Error(explain(error), print_exception=False) from error
            raise


def check_files(sent: Any) -> None:
    """Check every file in the JSON that a visitor sent, whatever component it is for."""
    rest = [sent]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            if value.get("path") is not None:
                check_path(value["path"])
            rest += value.values()
        elif isinstance(value, list | tuple):
            rest += value


def check_path(path: Any) -> None:
    """Accept the path of a regular file in the upload folder, or of one that is gone: old files are deleted.

    Nothing outside the folder is touched, not even to see whether it exists: the path is compared as text, then
    followed part by part from the folder, through real folders only. So all other paths get the same refusal.
    """
    parts = parts_in_folder(path)
    place, last = os.path.realpath(utils.get_upload_folder()), len(parts) - 1
    for index, part in enumerate(parts):
        place = os.path.join(place, part)
        try:
            found = os.lstat(place).st_mode
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:  # ValueError: NUL, or characters that no file name can have
            raise UserError(NOT_UPLOADED) from error
        if not (stat.S_ISREG(found) if index == last else stat.S_ISDIR(found)):
            raise UserError(NOT_UPLOADED)


def parts_in_folder(path: Any) -> list[str]:
    """The parts of a path below the upload folder, by its text alone."""
    folder = utils.get_upload_folder()
    if isinstance(path, str):
        path = os.path.join(os.getcwd(), path)
        for root in (os.path.abspath(folder), os.path.realpath(folder)):
            if path.startswith(root + os.sep):
                parts: list[str] = path[len(root) :].split(os.sep)[1:]
                if not {"", os.curdir, os.pardir}.intersection(parts):
                    return parts
    raise UserError(NOT_UPLOADED)
