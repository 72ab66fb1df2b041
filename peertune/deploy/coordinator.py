"""What NVIDIA FLARE runs at the server: the same experiment as on one machine, with another engine."""

from pathlib import Path
from typing import Any

import msgspec
from nvflare.collab import collab

from peertune.deploy.home import agreed, read_settings
from peertune.deploy.job import OUTCOME, PROGRESS, Outcome, check_versions
from peertune.deploy.parts import Participant
from peertune.engines.flare import FlareEngine
from peertune.errors import PeertuneError
from peertune.experiment import Experiment
from peertune.runs import new_run


class FlareCoordinator(Participant):
    """Runs the experiment, from its last whole round if it has been begun before."""

    @collab.main
    def coordinate(self) -> None:
        context = collab.fl_ctx
        outcome = Path(collab.workspace.get_run_dir(context.get_job_id())) / OUTCOME
        progress: dict[str, Any] = {}
        context.get_engine().register_app_command(PROGRESS, lambda *_: progress)
        try:
            self._run(progress)
        except PeertuneError as error:
            outcome.write_bytes(msgspec.json.encode(Outcome(error.exit_code, str(error))))
            raise RuntimeError(f"the run ended with {type(error).__name__}") from None
        outcome.write_bytes(msgspec.json.encode(Outcome(0, "")))

    def _run(self, progress: dict[str, Any]) -> None:
        check_versions(self.versions)
        kit = self.kit()
        settings = read_settings(kit)
        config, folder = agreed(settings, self.wanted), new_run(kit / settings.runs, self.run)

        def watch(event: str, body: dict[str, Any]) -> None:
            if event in ("begin", "round"):
                progress.update(body, event=event)

        experiment = Experiment.reopen(folder, watch) if folder.exists() else Experiment.create(folder, config, watch)
        experiment.again = f"`peertune run FILE --on KIT --name {self.run}`"
        lines, session = self.lines(), self.session()
        experiment.start = lambda config, folder, listener: FlareEngine(lines, session, listener=listener)
        experiment.run()
