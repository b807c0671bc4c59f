package bridge.engine.api;

import io.kestra.core.models.executions.Execution;
import io.kestra.core.models.flows.State;
import io.kestra.core.runners.FlowInputOutput;
import io.kestra.core.services.FlowService;
import io.micronaut.context.ApplicationContext;
import java.util.Optional;
import reactor.core.publisher.Flux;

/** Creates an execution as Kestra 1.3 does: stored and queued in one go, not yet seen by the executor. */
final class Creation {
    private final FlowService flows;
    private final FlowInputOutput inputs;
    private final Queues queues;

    Creation(ApplicationContext context) {
        this.flows = context.getBean(FlowService.class);
        this.inputs = context.getBean(FlowInputOutput.class);
        this.queues = new Queues(context);
    }

    Execution create(Order order) throws Exception {
        var date = Optional.ofNullable(order.scheduleDate());
        var empty = Execution.newExecution(order.flow(), null, order.labels(), date, order.kind())
            .withBreakpoints(order.breakpoints());
        var values = inputs.readExecutionInputs(order.flow(), empty, Flux.fromIterable(order.parts())).block();
        var filled = empty.withInputs(values);
        return queues.send(order.fails(flows, values) ? filled.withState(State.Type.FAILED) : filled);
    }
}
