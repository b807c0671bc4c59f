package bridge.engine.api;

import bridge.engine.http.Reply;
import io.kestra.core.executor.command.ExecutionCommand;
import io.kestra.core.executor.command.ForceRun;
import io.kestra.core.executor.command.Pause;
import io.kestra.core.executor.command.Replay;
import io.kestra.core.executor.command.Restart;
import io.kestra.core.executor.command.Resume;
import io.kestra.core.executor.command.Unqueue;
import io.kestra.core.executor.command.UpdateLabels;
import io.kestra.core.executor.command.UpdateStatus;
import io.kestra.core.models.Label;
import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.flows.Flow;
import io.kestra.core.models.flows.State;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.services.ExecutionService;
import io.kestra.core.utils.IdUtils;
import io.micronaut.context.ApplicationContext;
import io.micronaut.http.multipart.CompletedPart;
import java.util.List;
import java.util.function.Function;
import reactor.core.publisher.Flux;

/** Changes an execution as Kestra 2.0 does: by a command; the answer is the execution once the executor has carried it out. */
final class Changes {
    static final String PATH = "/executions/{id}/actions/";

    private final ExecutionRepositoryInterface repository;
    private final ExecutionService service;
    private final Commands commands;

    Changes(ApplicationContext context) {
        this.repository = context.getBean(ExecutionRepositoryInterface.class);
        this.service = context.getBean(ExecutionService.class);
        this.commands = new Commands(context);
    }

    Reply kill(Execution execution, boolean cascade) throws Exception {
        commands.kill(execution.getId(), cascade);
        return show(execution.getId());
    }

    Reply restart(Execution execution, Integer revision) throws Exception {
        return send(execution, id -> Restart.from(execution, revision).withOperationId(id));
    }

    Reply replay(Execution execution, String taskRunId, Integer revision, String breakpoints) throws Exception {
        var replayId = IdUtils.create();
        var replay = Replay.from(execution, replayId, taskRunId, revision, breakpoints);
        commands.send(replayId, replay::withOperationId);
        return show(replayId);
    }

    Reply resume(Execution execution, Flow flow, List<CompletedPart> parts) throws Exception {
        var inputs = service.readInputs(execution, flow, Flux.fromIterable(parts)).block();
        var resumed = io.kestra.plugin.core.flow.Pause.Resumed.now();
        return send(execution, id -> Resume.from(execution, resumed, inputs).withOperationId(id));
    }

    Reply pause(Execution execution) throws Exception {
        return send(execution, id -> Pause.from(execution).withOperationId(id));
    }

    Reply forceRun(Execution execution) throws Exception {
        return send(execution, id -> ForceRun.from(execution).withOperationId(id));
    }

    Reply unqueue(Execution execution, State.Type state) throws Exception {
        return send(execution, id -> Unqueue.from(execution, state).withOperationId(id));
    }

    Reply label(Execution execution, List<Label> labels) throws Exception {
        return send(execution, id -> UpdateLabels.from(execution, labels).withOperationId(id));
    }

    Reply changeStatus(Execution execution, State.Type state) throws Exception {
        return send(execution, id -> UpdateStatus.from(execution, state).withOperationId(id));
    }

    private Reply send(Execution execution, Function<String, ExecutionCommand> command) throws Exception {
        commands.send(execution.getId(), command);
        return show(execution.getId());
    }

    private Reply show(String id) {
        return Reply.ok(ExecutionJson.whole(Executions.find(repository, id)));
    }
}
