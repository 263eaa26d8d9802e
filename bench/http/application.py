"""The Starlette application that uvicorn and granian serve: the files of one directory."""

import os

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

app = Starlette(routes=[Mount("/", StaticFiles(directory=os.environ["BENCH_DIRECTORY"]))])
