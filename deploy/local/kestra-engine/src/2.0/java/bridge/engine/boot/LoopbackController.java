package bridge.engine.boot;

import io.grpc.ServerBuilder;
import io.grpc.netty.NettyServerBuilder;
import io.kestra.controller.DefaultController;
import io.kestra.controller.config.ControllerConfiguration;
import io.kestra.controller.config.GrpcConfiguration;
import io.kestra.controller.grpc.InternalCallServerInterceptor;
import io.kestra.controller.grpc.WorkerControllerService;
import io.kestra.core.metrics.MetricRegistry;
import io.kestra.core.server.ServiceStateChangeEvent;
import io.micronaut.context.ApplicationContext;
import io.micronaut.context.event.ApplicationEventPublisher;
import io.micronaut.core.type.Argument;
import java.net.InetAddress;
import java.net.InetSocketAddress;
import java.util.List;

/** Kestra's worker controller, which binds every interface, bound to loopback alone. */
final class LoopbackController extends DefaultController {
    private final List<WorkerControllerService> services;

    private LoopbackController(
        List<WorkerControllerService> services, GrpcConfiguration grpc, ControllerConfiguration controller,
        MetricRegistry metrics, ApplicationEventPublisher<ServiceStateChangeEvent> events
    ) {
        super(services, grpc, controller, metrics, events);
        this.services = services;
    }

    static LoopbackController of(ApplicationContext context) {
        return new LoopbackController(
            List.copyOf(context.getBeansOfType(WorkerControllerService.class)),
            context.getBean(GrpcConfiguration.class),
            context.getBean(ControllerConfiguration.class),
            context.getBean(MetricRegistry.class),
            context.getBean(Argument.of(ApplicationEventPublisher.class, ServiceStateChangeEvent.class))
        );
    }

    @Override
    protected ServerBuilder<?> buildServer(int port) {
        var address = new InetSocketAddress(InetAddress.getLoopbackAddress(), port);
        var builder = NettyServerBuilder.forAddress(address, createServerCredentials())
            .intercept(new InternalCallServerInterceptor())
            .addService(healthStatusManager.getHealthService())
            .maxInboundMessageSize(grpcConfiguration.maxInboundMessageSize());
        services.forEach(builder::addService);
        return builder;
    }
}
