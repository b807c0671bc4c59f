package bridge.engine.api;

import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.flows.State;
import io.kestra.core.runners.FlowInputOutput;
import io.kestra.core.services.FlowService;
import jakarta.inject.Singleton;
import java.util.Optional;
import reactor.core.publisher.Flux;

/** Creates an execution as Kestra 1.3 does: stored and queued in one go, not yet seen by the executor. */
@Singleton
record Creation(FlowService flows, FlowInputOutput inputs, Queues queues) {
    Execution create(Order order) throws Exception {
        var date = Optional.ofNullable(order.scheduleDate());
        var empty = Execution.newExecution(order.flow(), null, order.labels(), date, order.kind())
            .withBreakpoints(order.breakpoints());
        var values = inputs.readExecutionInputs(order.flow(), empty, Flux.from(order.parts())).block();
        var filled = empty.withInputs(values);
        return queues.send(order.fails(flows, values) ? filled.withState(State.Type.FAILED) : filled);
    }
}
