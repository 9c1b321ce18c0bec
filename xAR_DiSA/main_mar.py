"""The name under which xAR's training script was released: see main_xar.py."""

from main_xar import main, run

if __name__ == "__main__":
    run(main)
