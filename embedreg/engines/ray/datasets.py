"""Ray: embedding a Ray dataset, or the pieces of a resumable job, on the actors of a cluster; one model an actor.

`docs/ray.md` is the page about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedreg.embedding import schema as schemas
from embedreg.embedding import table as tables
from embedreg.embedding.column import ZeroVectors
from embedreg.engines.ray.cluster import ActorPool, plain_errors, result_of
from embedreg.engines.ray.jobs import engine, run_job
from embedreg.engines.ray.sinks import remember, write_lance, write_parquet
from embedreg.engines.ray.worker import BlockEmbedder, Payload, Plan, pack, plan
from embedreg.errors import ConfigError, InputError, SchemaError
from embedreg.support.imports import attempt_import_or_raise

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.data import Dataset

__all__ = ["embed_dataset", "engine", "plain_errors", "run_job", "write_lance", "write_parquet"]


def embed_dataset(
    ds: Dataset,
    declaration: Any = None,
    *,
    actors: int | tuple[int, int],
    gpus_per_actor: float = 0,
    cpus_per_actor: float = 1,
    batch_rows: int = tables.BATCH_ROWS,
    on_error: tables.OnError = "raise",
    zero_vectors: ZeroVectors | None = None,
    **options: Any,
) -> Dataset:
    """Return a Ray dataset with its vector columns filled in by a pool of actors, each with one model.

    The result is lazy, as Ray's are; what declares the functions is in the Arrow schema of each of its blocks. Before
    it returns, one worker has checked that the functions run there, and has learnt the probe: on a cluster that is
    busy, or that starts nodes on demand, this waits. Where Ray does not know the dataset's columns, asking for
    them runs its first step.

    Args:
        ds: a `ray.data.Dataset`.
        declaration: what declares the functions: `fn.bind(source, vector)`, a list of these, or a Schema class; None
            for what the data's own metadata declares.
        actors: how many, or (least, most) for Ray to choose between.
        gpus_per_actor: a share such as 0.5 lets two actors have one GPU.
        cpus_per_actor: logical CPUs; on a CPU, torch uses as many threads in each actor.
        batch_rows: rows that an actor gets at a time, and of a block of the result.
        on_error: what a failed row does: "raise" an error, leave a "null" vector, or "drop" the row. A failed call
            always fails the run.
        zero_vectors: what to do with a vector of zeros: "null", "keep", or "error", a failed row; as `embed_batches`.
        options: further options of Ray's actors: `memory`, `resources`, `accelerator_type`, `runtime_env`.
    Raises:
        MissingVariableError: a secret is set in this process only, or not at all on the worker. HardcodedSecretError:
            one would travel. MissingExtraError: the worker lacks a library, or cannot import a function's class.
        SchemaError, MissingColumnError, ConfigError: data, declaration or cluster that do not fit. CallError,
            ModelNotFoundError: the model does not run there.
    """
    data = attempt_import_or_raise("ray.data", "ray[data]", extra="ray")
    if not isinstance(ds, data.Dataset):
        raise InputError(f"expected a ray.data.Dataset, got a {type(ds).__name__}.", "ray.data.from_arrow(table)")
    pool = ActorPool(actors, cpus_per_actor, gpus_per_actor, options)
    pool.refuse_impossible()
    given = _schema_of(ds)
    schema = schemas.resolve(given if declaration is None else declaration)
    if not schema.configs:
        raise ConfigError("nothing declares a function.", "embed_dataset(ds, fn.bind('text', 'vector'), ...)")
    payload = pack(schema, [config.function for config in schema.configs], pool.most)
    policy = {"on_error": on_error, "batch_rows": batch_rows, "zero_vectors": zero_vectors}
    made = _planned(pool, payload, given, policy)
    # Small blocks: a file that is read as one block would keep one actor busy while the others wait.
    out: Dataset = ds.repartition(target_num_rows_per_block=batch_rows).map_batches(
        BlockEmbedder,
        fn_constructor_args=(payload, made),
        compute=data.ActorPoolStrategy(min_size=pool.least, max_size=pool.most),
        batch_size=batch_rows,
        batch_format="pyarrow",
        **pool.options,
    )
    remember(out, made.made)
    return out


def _schema_of(ds: Dataset) -> pa.Schema:
    """Return the Arrow schema of a dataset, its metadata included."""
    import pyarrow as pa

    with plain_errors():
        schema = ds.schema()
    if schema is None:
        raise SchemaError("the dataset has no rows, and so no columns.", "check what it reads")
    own = schema.base_schema
    return own if isinstance(own, pa.Schema) else pa.schema(zip(schema.names, schema.types, strict=True))


def _planned(pool: ActorPool, payload: Payload, given: pa.Schema, policy: dict[str, Any]) -> Plan:
    """Check the functions on one worker with the actors' resources, and return the plan of the blocks."""
    import ray

    # max_calls=1: the process ends with the call, which frees the model that it loaded.
    task = ray.remote(max_calls=1, max_retries=0)(plan).options(**pool.options)
    made: Plan = result_of(task.remote(payload, given, policy))
    return made
