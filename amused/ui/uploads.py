"""The gate for files: an event of the page gets only what lies in the page's own upload folder.

Gradio (6.31) checks only file data that carries the key "meta", downloads what is given by a web address, and reads
what is given without "meta" from anywhere on the machine. So nothing reaches it, or a handler, before this check.
"""

from __future__ import annotations

import os
import stat
from typing import Any

import gradio as gr
from gradio import utils

from amused.errors import UserError

NOT_UPLOADED = "This file was not uploaded to this page: upload it and try again."


class GatedBlocks(gr.Blocks):
    """Blocks whose events, by whatever route they come, refuse files from outside the upload folder."""

    async def process_api(
        self, block_fn: Any, inputs: list[Any], *args: Any, iterator: Any = None, event_data: Any = None, **more: Any
    ) -> dict[str, Any]:
        if iterator is None:  # otherwise a later step of a run, whose inputs have passed
            try:
                check_files([inputs, None if event_data is None else event_data._data])
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from error
        return await super().process_api(block_fn, inputs, *args, iterator=iterator, event_data=event_data, **more)


def check_files(sent: Any) -> None:
    """Look at every file in JSON that a visitor sent, whatever component it is meant for.

    Raises:
        UserError: one of them is none that was uploaded.
    """
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
    """Accept a path in the upload folder of a regular file, or of nothing: a file that has been swept away since.

    Nothing outside the folder is touched, not even to see whether it exists: the path is compared as text, then
    followed step by step from the folder, through real folders only. So the answer to any other path is the same.

    Raises:
        UserError: any other path.
    """
    parts = parts_in_folder(path)
    place, last = os.path.realpath(utils.get_upload_folder()), len(parts) - 1
    for index, part in enumerate(parts):
        place = os.path.join(place, part)
        try:
            found = os.lstat(place).st_mode
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:  # ValueError: NUL, or a character that is no name
            raise UserError(NOT_UPLOADED) from error
        if not (stat.S_ISREG(found) if index == last else stat.S_ISDIR(found)):
            raise UserError(NOT_UPLOADED)


def parts_in_folder(path: Any) -> list[str]:
    """The names that lead from the upload folder to the path, going by its text alone."""
    folder = utils.get_upload_folder()
    if isinstance(path, str):
        path = os.path.join(os.getcwd(), path)
        for root in (os.path.abspath(folder), os.path.realpath(folder)):
            if path.startswith(root + os.sep):
                parts = path[len(root) :].split(os.sep)[1:]
                if not {"", os.curdir, os.pardir}.intersection(parts):
                    return parts
    raise UserError(NOT_UPLOADED)
