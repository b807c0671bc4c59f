package bridge.engine.api;

import static bridge.engine.api.Api.TENANT;

import io.kestra.core.executor.command.Create;
import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.flows.FlowId;
import io.kestra.core.models.flows.State;
import io.kestra.core.repositories.ExecutionRepositoryInterface;
import io.kestra.core.runners.FlowInputOutput;
import io.kestra.core.services.FlowService;
import jakarta.inject.Singleton;
import java.time.ZonedDateTime;
import java.util.NoSuchElementException;
import java.util.Optional;
import reactor.core.publisher.Flux;

/** Creates an execution as Kestra 2.0 does: by a command, which the executor confirms. */
@Singleton
record Creation(FlowService flows, FlowInputOutput inputs, ExecutionRepositoryInterface repository, Commands commands) {
    Execution create(Order order) throws Exception {
        var read = command(order);
        var command = order.fails(flows, read.inputs()) ? read.withStateType(State.Type.FAILED) : read;
        commands.send(command.executionId(), command::withOperationId);
        return repository.findById(TENANT, command.executionId()).orElseThrow(
            () -> new NoSuchElementException("Execution disappeared after create: " + command.executionId()));
    }

    private Create command(Order order) {
        var flow = order.flow();
        return Create.of(FlowId.of(TENANT, flow.getNamespace(), flow.getId(), flow.getRevision()))
            .withLabels(order.labels())
            .withKind(order.kind())
            .withScheduleDate(Optional.ofNullable(order.scheduleDate()).map(ZonedDateTime::toInstant).orElse(null))
            .withBreakpoints(order.breakpoints())
            .withInputsFromReader(executionId ->
                inputs.readExecutionInputs(flow, executionId, order.labels(), Flux.from(order.parts())).block());
    }
}
