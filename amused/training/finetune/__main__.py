"""python -m amused.training.finetune"""

from amused.training.finetune.train import main

if __name__ == "__main__":
    main()
