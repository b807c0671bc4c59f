package bridge.engine.api;

import io.kestra.core.debug.Breakpoint;
import io.kestra.core.models.Label;
import io.kestra.core.models.executions.ExecutionKind;
import io.kestra.core.models.flows.Flow;
import io.kestra.core.models.flows.check.Check;
import io.kestra.core.services.FlowService;
import io.micronaut.http.multipart.CompletedPart;
import java.time.ZonedDateTime;
import java.util.List;
import java.util.Map;

/** An execution that is asked for; what nobody asked for is null. */
record Order(
    Flow flow, List<Label> labels, ExecutionKind kind, ZonedDateTime scheduleDate, List<Breakpoint> breakpoints,
    List<CompletedPart> parts
) {
    /** Whether the flow's checks let it be created as failed only; they may also refuse it, by an exception. */
    boolean fails(FlowService flows, Map<String, Object> inputs) {
        var failed = flows.getFailedChecks(flow, inputs);
        if (failed.isEmpty()) {
            return false;
        }
        return switch (Check.resolveBehavior(failed)) {
            case BLOCK_EXECUTION -> throw new IllegalArgumentException(
                "Flow execution blocked: " + String.join(", ", failed.stream().map(Check::getMessage).toList()));
            case FAIL_EXECUTION -> true;
            case CREATE_EXECUTION -> false;
        };
    }
}
