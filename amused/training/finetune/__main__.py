"""python -m amused.training.finetune"""

from amused.memory import keep_freed_memory
from amused.training.finetune.train import main

if __name__ == "__main__":
    keep_freed_memory()
    main()
