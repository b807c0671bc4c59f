package bridge.engine.api;

import io.kestra.core.exceptions.AlreadyExistsException;
import io.kestra.core.exceptions.FlowProcessingException;
import io.kestra.core.models.flows.FlowWithSource;
import io.kestra.core.models.flows.GenericFlow;
import io.kestra.core.services.FlowService;
import io.micronaut.context.ApplicationContext;

/** Keeps flows as Kestra 2.0 does, by its flow service. */
final class FlowStore {
    private final FlowService service;

    FlowStore(ApplicationContext context) {
        this.service = context.getBean(FlowService.class);
    }

    FlowWithSource create(GenericFlow flow) throws Exception {
        try {
            return service.create(flow);
        } catch (AlreadyExistsException e) {
            // The one conflict that Kestra's web server calls an invalid entity.
            throw new FlowProcessingException(e.getMessage());
        }
    }

    FlowWithSource update(GenericFlow flow, FlowWithSource previous) throws Exception {
        if (!flow.getId().equals(previous.getId()) || !flow.getNamespace().equals(previous.getNamespace())) {
            throw new IllegalArgumentException("Flow id and namespace can't be changed by an update");
        }
        return service.update(flow, previous);
    }
}
