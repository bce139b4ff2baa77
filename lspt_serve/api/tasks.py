"""GET /tasks: what is served."""

from typing import Annotated

from fastapi import APIRouter, Depends

from lspt_serve.api.classify import get_classifier
from lspt_serve.api.failures import RESPONSES
from lspt_serve.bundle import Manifest
from lspt_serve.runtime import Classifier
from lspt_serve.schemas import Task, TaskList

__all__ = ["router"]

router = APIRouter()


@router.get("/tasks")
async def list_tasks(classifier: Annotated[Classifier, Depends(get_classifier)]) -> TaskList:
    """The tasks that are served, and the bundles that are not, with the reason."""
    store = classifier.store
    return TaskList(
        generation=store.generation,
        tasks=[_describe(task) for task in store],
        refused=dict(store.refused),
    )


@router.get("/tasks/{name}", responses={404: RESPONSES[404]})
async def get_task(name: str, classifier: Annotated[Classifier, Depends(get_classifier)]) -> Task:
    """One task."""
    return _describe(classifier.store.manifest(name))


def _describe(manifest: Manifest) -> Task:
    return Task(
        name=manifest.name,
        version=manifest.version,
        labels=manifest.labels,
        method=manifest.method.name,
        metrics=manifest.metrics,
        license=manifest.license,
    )
