"""What is believed of each class of workers: its profile first, its own steps from then on."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from stafette.platform.planner.config import PlannerConfig
from stafette.platform.planner.engine_model import EngineModel
from stafette.platform.planner.observation import WorkerState
from stafette.platform.planner.pool_spec import PoolSpec
from stafette.platform.planner.shape import Shape
from stafette.platform.planner.sizing import Sizer
from stafette.platform.planner.velocity import Velocity
from stafette.router.performance import Learner, Performance, StepReport

_ENOUGH = 30  # reports, from which what was learned counts
_STRANGE = 0.5  # a profile that is off by so much is not these workers'


class Beliefs:
    def __init__(self, config: PlannerConfig, pools: Mapping[str, PoolSpec]) -> None:
        self._config = config
        self._pools = pools
        self._classes = {name: spec.worker_class or name for name, spec in pools.items()}
        self._speakers = _speakers(pools, self._classes)
        self._priors = {each: pools[name].model for each, name in self._speakers.items()}
        self._learners = {c: Learner(m.performance) for c, m in self._priors.items()}
        self._first_errors: dict[str, list[float]] = {c: [] for c in self._priors}

    @property
    def flippable(self) -> bool:
        """Return whether every worker can take every role."""
        return self._config.flips and len(set(self._classes.values())) == 1

    @property
    def prefill(self) -> EngineModel:
        return self._of_role("prefill")

    @property
    def decode(self) -> EngineModel:
        return self._of_role("decode")

    @property
    def sizer(self) -> Sizer:
        return Sizer(self.prefill, self._config.slo, decode=self.decode)

    def know(self, pool: str, kv_tokens: int, max_num_seqs: int) -> None:
        """Take what a pool's workers say that they hold."""
        name = self._classes[pool]
        if self._speakers[name] == pool:
            told = replace(self._priors[name], kv_tokens=kv_tokens, max_num_seqs=max_num_seqs)
            self._priors[name] = told

    def learn(self, workers: Iterable[WorkerState]) -> None:
        for worker in workers:
            name = self._classes[worker.pool]
            for step in worker.steps:
                self._note_error(name, step)
                self._learners[name].learn(step)

    def model(self, worker_class: str) -> EngineModel:
        prior, learner = self._priors[worker_class], self._learners[worker_class]
        if learner.reports < _ENOUGH:
            return prior
        return replace(prior, performance=learner.performance)

    def worth(self, shape: Shape) -> dict[str, float]:
        """Return how many of its role's first class a worker of each pool stands for."""
        found: dict[str, float] = {}
        slo = self._config.slo
        for name, spec in self._pools.items():
            own = Velocity.of(self.model(self._classes[name]), shape, slo)
            base = Velocity.of(self._of_role(spec.role), shape, slo)
            of_prompts, of_answers = own.prefill / base.prefill, own.decode / base.decode
            found[name] = {
                "prefill": of_prompts,
                "decode": of_answers,
                "both": min(of_prompts, of_answers),
            }[spec.role]
        return found

    def doubts(self) -> list[str]:
        """Return what does not fit: most likely the profile of another model or machine."""
        found = []
        for name, errors in self._first_errors.items():
            if len(errors) >= _ENOUGH and sum(errors) / len(errors) > _STRANGE:
                off = sum(errors) / len(errors)
                found.append(
                    f"the profile of {name} was off by {off:.0%}: is it another model's? What its "
                    f"workers report is used instead"
                )
        return found

    def _note_error(self, name: str, step: StepReport) -> None:
        errors = self._first_errors[name]
        if len(errors) < _ENOUGH and step.usable:
            expected = _expected_ms(self._priors[name].performance, step)
            errors.append(abs(expected - step.wall_ms) / step.wall_ms)

    def _of_role(self, role: str) -> EngineModel:
        """Return the model of the role's cheapest pool, or of any where the role has none."""
        fitting = [n for n, s in self._pools.items() if s.role in (role, "both")]
        names = sorted(
            fitting or self._pools, key=lambda n: (self._pools[n].limits.cost_per_hour, n)
        )
        return self.model(self._classes[names[0]])


def _speakers(pools: Mapping[str, PoolSpec], classes: Mapping[str, str]) -> dict[str, str]:
    """Return for each class the pool whose room counts: one that decodes, where there is one."""
    decoding_last = sorted(pools, key=lambda name: pools[name].role != "prefill")
    return {classes[name]: name for name in decoding_last}


def _expected_ms(performance: Performance, step: StepReport) -> float:
    return (
        performance.decode_step_ms(step.decode_sequences, step.decode_kv_tokens)
        + step.prefill_tokens * performance.prefill_ms_per_token
        + step.prefill_pairs * performance.prefill_ms_per_pair
    )
