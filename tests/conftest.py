"""One thread for each test process: the models are tiny, and on a busy machine threads mostly wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
