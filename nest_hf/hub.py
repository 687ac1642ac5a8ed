"""A run on the Hub: the whole model in one commit, or none.

transformers uploads a folder in several commits where hf_xet is installed, and checkpoints while training still writes
beside them; both can leave half a model on the Hub. Here a run is pushed once, at its end.
"""

import logging
import os
import sys
import time
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from transformers import TrainingArguments

from .handover import RECORD
from .model_cards import write_model_cards

logger = logging.getLogger(__name__)

# what loading needs and what tells how the model was made; nothing that quotes recordings or their texts
PUSHED = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "adapter_config.json"),
    *("*processor*.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges*"),
    *("*.model", "*chat_template*", "*.py", "README.md", RECORD, "eval_results.json", "config_resolved.yaml"),
)
OF_TRAINING = ("checkpoint-*", "best", "runs", "predictions", "wandb", "trackio", "__pycache__", ".*")
WAITS_S = (1, 4)  # between attempts


def hide_token(args: TrainingArguments) -> None:
    """
    Moves `hub_token` to the environment variable `HF_TOKEN`, where the client looks for it: whatever saves or prints
    arguments, such as `training_args.bin` or a tracker, does not see it.
    """
    if args.hub_token is None:
        return
    os.environ["HF_TOKEN"] = args.hub_token
    sys.argv = [argument.replace(args.hub_token, "<HUB_TOKEN>") for argument in sys.argv]
    args.hub_token = None


def create_repository(args: TrainingArguments, *, remedy: str | None = None) -> str:
    """
    Creates the run's repository, if it is not there.

    Args:
        args (`TrainingArguments`): `hub_model_id` (the name of `output_dir` where not given), `hub_private_repo`.
        remedy (`str`, *optional*): What to do where it fails; before training by default.

    Returns:
        `str`: Its id, with the namespace.

    Raises:
        OSError: in one line, where the Hub refuses or cannot be reached.
    """
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    remedy = remedy or "Training has not begun; give the same command again, or leave out `push_to_hub`."
    url = _attempt(lambda: HfApi().create_repo(name, private=args.hub_private_repo, exist_ok=True), name, remedy)
    return url.repo_id


def push_run(args: TrainingArguments, *, commit_message: str) -> CommitInfo | None:
    """
    Writes the model card and pushes the model in the run's folder, in one commit; the first process alone does it.
    What is there already is not sent again, so the same command goes on after a failure.

    Args:
        args (`TrainingArguments`): `output_dir`, `hub_model_id`, `hub_private_repo`, `hub_revision`, `hub_license`.
        commit_message (`str`): Of the commit.

    Raises:
        OSError: in one line, where the Hub refuses or cannot be reached; the folder stays as it is.
    """
    if args.process_index != 0:
        return None
    folder = Path(args.output_dir)
    remedy = f"The whole model is in {folder}; give the same command again to push it."
    repo_id = create_repository(args, remedy=remedy)
    write_model_cards(folder, repo_id=repo_id, licence=args.hub_license)
    commit = _attempt(lambda: _commit(folder, repo_id, args.hub_revision, commit_message), repo_id, remedy)
    logger.info("pushed to %s", commit.commit_url)
    return commit


def files_to_push(folder: str | Path) -> list[str]:
    """Paths in a run's folder, relative to it, that make up the model."""
    paths = [path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in paths if _is_pushed(path))


def _is_pushed(path: Path) -> bool:
    inside = not any(parent.match(pattern) for parent in list(path.parents)[:-1] for pattern in OF_TRAINING)
    return inside and any(path.match(pattern) for pattern in PUSHED)


def _commit(folder: Path, repo_id: str, revision: str | None, message: str) -> CommitInfo:
    """One commit on top of the head as it is now, which also deletes what an earlier run has left of its model."""
    api = HfApi()
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    head = api.repo_info(repo_id, revision=revision)
    files = files_to_push(folder)
    old = [entry.rfilename for entry in head.siblings or () if _is_pushed(Path(entry.rfilename))]
    operations = [
        *(CommitOperationDelete(path) for path in old if path not in files),
        *(CommitOperationAdd(path, folder / path) for path in files),
    ]
    return api.create_commit(
        repo_id, operations, commit_message=message, revision=revision, parent_commit=head.sha, num_threads=2
    )


def _attempt(action, repo_id: str, remedy: str):
    """Does it, again where the network failed, and tells in one line why it did not work."""
    for wait_s in (*WAITS_S, None):
        try:
            return action()
        except (HTTPError, ConnectionError, PermissionError, RuntimeError) as error:  # the last two of uploads
            cause = error.__cause__ or error if isinstance(error, RuntimeError) else error
            status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
            if wait_s is None or (status is not None and status < 500 and status != 429):
                # not from the error, whose text may quote headers
                raise OSError(f"{_reason(status, repo_id, cause)} {remedy}") from None
        logger.warning("%s was not reached (%s); again in %d s", constants.ENDPOINT, type(cause).__name__, wait_s)
        time.sleep(wait_s)


def _reason(status: int | None, repo_id: str, error: Exception) -> str:
    at = f"{constants.ENDPOINT} for {repo_id}"
    if status == 401 and get_token() is None:
        return f"{at}: no token; set HF_TOKEN, or log in by `hf auth login`."
    if status == 401:
        return f"{at}: the token was refused (401); set HF_TOKEN to a valid one, or log in by `hf auth login`."
    if status == 403:
        return f"{at}: the token may not write there (403); take one that may, or another `hub_model_id`."
    if status in (409, 412):
        return f"{at}: another commit came in between ({status})."
    if status is not None:
        return f"{at}: the Hub answered {status}; see whether `hub_model_id` and `hub_revision` are right."
    what = "the connection broke" if isinstance(error, HTTPError | ConnectionError) else "the upload failed"
    return f"{at}: {what} ({type(error).__name__})."


__all__ = ["create_repository", "files_to_push", "hide_token", "push_run"]
