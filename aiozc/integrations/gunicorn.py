"""gunicorn's worker with uvicorn's protocols of `aiozc.integrations.uvicorn`.

    gunicorn -k aiozc.integrations.gunicorn.UvicornWorker module:app

It is the worker of the package uvicorn-worker, in its subclass for uvicorn's `Auto`.
"""

from typing import Any, ClassVar

import uvicorn_worker  # type: ignore[import-untyped]


class UvicornWorker(uvicorn_worker.UvicornWorker):  # type: ignore[misc]
    """A worker that runs uvicorn, with files."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        **uvicorn_worker.UvicornWorker.CONFIG_KWARGS,
        "http": "aiozc.integrations.uvicorn:Auto",
    }
