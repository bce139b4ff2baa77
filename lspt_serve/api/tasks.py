"""GET /tasks: what is served."""

from fastapi import APIRouter, Response

from lspt_serve.api.auth import CallersClassifier
from lspt_serve.api.openapi import responses
from lspt_serve.manifest import Manifest
from lspt_serve.runtime import PromptStore
from lspt_serve.schemas import Task, TaskList

__all__ = ["router"]

router = APIRouter()


@router.get("/tasks", response_model=TaskList, responses=responses(401, 504))
def list_tasks(classifier: CallersClassifier) -> Response:
    """The tasks that are served, and the bundles that are not, with the reason."""
    # in a thread, to the last letter: there may be thousands
    listed = TaskList(
        generation=classifier.store.generation,
        tasks=[_describe(task, classifier.store) for task in classifier.tasks],
        refused=dict(classifier.tasks.refused),
    )
    return Response(listed.model_dump_json(), media_type="application/json")


@router.get("/tasks/{name}", responses=responses(401, 404, 504))
def get_task(name: str, classifier: CallersClassifier) -> Task:
    """One task."""
    return _describe(classifier.tasks.manifest(name), classifier.store)


def _describe(manifest: Manifest, store: PromptStore) -> Task:
    about = store.about(manifest)
    return Task(
        name=manifest.name,
        version=manifest.version,
        versions=about.versions,
        aliases=about.aliases,
        resident=about.resident,
        labels=manifest.labels,
        method=manifest.method.name,
        metrics=manifest.metrics,
        license=manifest.license,
    )
