"""Ray: embedding a Ray dataset, or the pieces of a resumable job, on the actors of a cluster; one model an actor.

`docs/ray.md` is the page about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedreg.embedding import schema as schemas
from embedreg.embedding import table as tables
from embedreg.embedding.column import ZeroVectors
from embedreg.engines.ray.cluster import Crew, plain_errors, result_of
from embedreg.engines.ray.jobs import engine, run_job
from embedreg.engines.ray.sinks import remember, write_lance, write_parquet
from embedreg.engines.ray.worker import Filler, Parcel, Plan, pack, plan
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
    busy, or that starts its nodes when asked, this waits. Where Ray does not know the dataset's columns, asking for
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
        zero_vectors: what becomes of a vector of zeros: "null", "keep", or "error", a failed row; as `embed_batches`.
        options: further options of Ray's actors: `memory`, `resources`, `accelerator_type`, `runtime_env`.
    Raises:
        MissingVariableError: a secret is set in this process only, or not at all on the worker. HardcodedSecretError:
            one would travel. MissingExtraError: the worker lacks a library, or cannot import a function's class.
        SchemaError, MissingColumnError, ConfigError: data, declaration or cluster that do not fit. CallError,
            ModelNotFoundError: the model does not run there.
    """
    data = attempt_import_or_raise("ray.data", "ray[data]", extra="ray")
    if not isinstance(ds, data.Dataset):
        raise InputError(f"a {type(ds).__name__} is no ray.data.Dataset.", "ray.data.from_arrow(table)")
    crew = Crew(actors, cpus_per_actor, gpus_per_actor, options)
    crew.refuse_impossible()
    given = _schema_of(ds)
    schema = schemas.resolve(given if declaration is None else declaration)
    if not schema.configs:
        raise ConfigError("nothing declares a function.", "embed_dataset(ds, fn.bind('text', 'vector'), ...)")
    parcel = pack(schema, [config.function for config in schema.configs])
    policy = {"on_error": on_error, "batch_rows": batch_rows, "zero_vectors": zero_vectors}
    made = _planned(crew, parcel, given, policy)
    # Blocks of their own size: else one that is read whole would keep one actor busy while the others wait.
    out: Dataset = ds.repartition(target_num_rows_per_block=batch_rows).map_batches(
        Filler,
        fn_constructor_args=(parcel, made),
        compute=data.ActorPoolStrategy(min_size=crew.least, max_size=crew.most),
        batch_size=batch_rows,
        batch_format="pyarrow",
        **crew.asks,
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


def _planned(crew: Crew, parcel: Parcel, given: pa.Schema, policy: dict[str, Any]) -> Plan:
    """Let one worker, with what the actors will have, check the functions and say what the blocks become."""
    import ray

    # A process of its own that ends with the call, and with it the model that it loaded.
    task = ray.remote(max_calls=1, max_retries=0)(plan).options(**crew.asks)
    made: Plan = result_of(task.remote(parcel, given, policy))
    return made
