"""A plugin file with a method that uses everything a context offers, and writes what it saw into its notes."""

from dataclasses import asdict

from pydantic import BaseModel, ConfigDict, Field

import edgesmith


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    factor: float = Field(default=0.1, gt=0, description="What it remarks.")
    fail: bool = Field(default=False, description="Whether to read a sample that is not there.")


class Curious(edgesmith.Method[Options]):
    def check(self, model, context):
        return edgesmith.Verdict.ok("curious", nodes=tuple(node.name for node in model.graph))

    def apply(self, model, context):
        data, notes = context.calibration, context.notes
        notes.remark(f"{context.options!r} {context.options.model_fields_set}")
        notes.remark(f"{len(data)} {data.description} {data.fingerprint} {data.has_labels}")
        for source in (data, data.take(5), data.select([0, 2, 3])):
            for batch in context.progress.track(source.batches(4), "reading"):
                sums = {
                    name: (str(array.dtype), array.shape, float(array.sum())) for name, array in batch.inputs.items()
                }
                notes.remark(f"{sums} {None if batch.labels is None else batch.labels.tolist()}")
        next(iter(data.batches(1)))
        if context.options.fail:
            data.select([10**6])
        metric = context.scoring.make()
        dialect = {
            name: sorted(value) if isinstance(value, frozenset) else value
            for name, value in asdict(context.dialect).items()
        }
        notes.remark(f"{context.source.digest()} {context.source_calibration}")
        notes.remark(f"{context.checkpoint.is_dir()} {context.seed} {context.threads}")
        notes.remark(f"{type(metric).__name__} {context.scoring.unit} {dialect}")
        with context.progress.stage("lowering"):
            lowered = context.trial.lower(model)
        notes.remark(f"{lowered.digest()} {context.trial.measures_latency}")
        if context.trial.measures_latency:
            (speedup,) = context.trial.speedups([lowered], lowered, max_seconds=0.1)
            notes.skip("head", f"{speedup.unit} of {type(speedup.value).__name__}")
        (context.scratch / "note.txt").write_text("scratch")
        notes.remark(str([path.name for path in context.scratch.iterdir()]))
        return model.clone()


@edgesmith.hookimpl
def register_methods():
    return [
        edgesmith.MethodRecord(
            name="curious",
            version="1",
            summary="Looks at everything.",
            entry=f"{__name__}:Curious",
            kind=edgesmith.Kind.ANALYSE,
            options=f"{__name__}:Options",
            guarantee=edgesmith.Guarantee.EXACT,
        )
    ]
