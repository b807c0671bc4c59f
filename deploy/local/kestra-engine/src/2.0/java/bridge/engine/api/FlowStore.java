package bridge.engine.api;

import io.kestra.core.exceptions.AlreadyExistsException;
import io.kestra.core.models.flows.FlowWithSource;
import io.kestra.core.models.flows.GenericFlow;
import io.kestra.core.models.validations.ManualConstraintViolation;
import io.kestra.core.services.FlowService;
import jakarta.inject.Singleton;
import jakarta.validation.ConstraintViolationException;

/** Keeps flows as Kestra 2.0 does, by its flow service. */
@Singleton
record FlowStore(FlowService service) {
    FlowWithSource create(GenericFlow flow) throws Exception {
        try {
            return service.create(flow);
        } catch (AlreadyExistsException e) {
            throw invalid(flow, "Flow id already exists");
        }
    }

    FlowWithSource update(GenericFlow flow, FlowWithSource previous) throws Exception {
        if (!flow.getId().equals(previous.getId()) || !flow.getNamespace().equals(previous.getNamespace())) {
            throw invalid(flow, "Illegal flow id update");
        }
        return service.update(flow, previous);
    }

    private static ConstraintViolationException invalid(GenericFlow flow, String reason) {
        return ManualConstraintViolation.toConstraintViolationException(reason, flow, GenericFlow.class, "flow.id", flow.getId());
    }
}
