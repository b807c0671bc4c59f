package io.kestra.plugin.amqp;

import com.rabbitmq.client.Channel;
import com.rabbitmq.client.ConnectionFactory;
import io.kestra.core.models.executions.metrics.Counter;
import io.kestra.core.models.property.Data;
import io.kestra.core.models.property.Property;
import io.kestra.core.models.tasks.RunnableTask;
import io.kestra.core.models.tasks.Task;
import io.kestra.core.runners.RunContext;
import io.kestra.core.serializers.JacksonMapper;
import jakarta.validation.constraints.NotNull;
import java.net.URI;

/**
 * Publishes messages to an AMQP exchange: a stand-in with the type name, the properties and the refusals of Kestra's AMQP plugin,
 * which isn't on Maven Central. Like the real one it opens a connection for each run, and knows neither TLS nor confirms.
 */
public class Publish extends Task implements RunnableTask<Publish.Output>, Data.From {
    private Property<String> url;
    private Property<String> host;
    private Property<String> port = Property.ofValue("5672");
    private Property<String> username;
    private Property<String> password;
    private Property<String> virtualHost = Property.ofValue("/");

    @NotNull
    private Property<String> exchange;

    private Property<String> routingKey;

    @NotNull
    private Object from;

    private Property<SerdeType> serdeType = Property.ofValue(SerdeType.STRING);

    @Override
    public Output run(RunContext runContext) throws Exception {
        try (var connection = connectionFactory(runContext).newConnection(); var channel = connection.createChannel()) {
            var messages = Data.from(from).readAs(runContext, Message.class, map -> JacksonMapper.toMap(map, Message.class));
            var count = 0;
            for (var message : messages.toIterable()) {
                publish(channel, message, runContext);
                count++;
            }
            runContext.metric(Counter.of("published.records", count));
            return new Output(count);
        }
    }

    private void publish(Channel channel, Message message, RunContext runContext) throws Exception {
        channel.basicPublish(
            runContext.render(exchange).as(String.class).orElseThrow(),
            runContext.render(routingKey).as(String.class).orElse(""),
            message.properties(),
            runContext.render(serdeType).as(SerdeType.class).orElseThrow().serialize(message.data()));
    }

    private ConnectionFactory connectionFactory(RunContext runContext) throws Exception {
        if (url != null && host != null) {
            throw new IllegalArgumentException("Cannot define both `url` and `host`");
        }
        if (url == null && host == null) {
            throw new IllegalArgumentException("`host` must be defined");
        }
        var factory = new ConnectionFactory();
        if (url != null) {
            apply(factory, new URI(runContext.render(url).as(String.class).orElseThrow()));
            return factory;
        }
        runContext.render(host).as(String.class).ifPresent(factory::setHost);
        runContext.render(port).as(String.class).map(Integer::parseInt).ifPresent(factory::setPort);
        runContext.render(username).as(String.class).ifPresent(factory::setUsername);
        runContext.render(password).as(String.class).ifPresent(factory::setPassword);
        runContext.render(virtualHost).as(String.class).ifPresent(factory::setVirtualHost);
        return factory;
    }

    /** The real plugin takes the whole path for the virtual host, slash and all, so {@code /%2F} names a host that isn't there. */
    private static void apply(ConnectionFactory factory, URI address) {
        factory.setHost(address.getHost());
        factory.setPort(address.getPort() != -1 ? address.getPort() : ConnectionFactory.DEFAULT_AMQP_PORT);
        if (address.getUserInfo() != null) {
            var credentials = address.getUserInfo().split(":", 2);
            factory.setUsername(credentials[0]);
            factory.setPassword(credentials.length > 1 ? credentials[1] : "");
        }
        if (!address.getPath().isEmpty()) {
            factory.setVirtualHost(address.getPath());
        }
    }

    public Property<String> getUrl() {
        return url;
    }

    public Property<String> getHost() {
        return host;
    }

    public Property<String> getPort() {
        return port;
    }

    public Property<String> getUsername() {
        return username;
    }

    public Property<String> getPassword() {
        return password;
    }

    public Property<String> getVirtualHost() {
        return virtualHost;
    }

    public Property<String> getExchange() {
        return exchange;
    }

    public Property<String> getRoutingKey() {
        return routingKey;
    }

    @Override
    public Object getFrom() {
        return from;
    }

    public Property<SerdeType> getSerdeType() {
        return serdeType;
    }

    /** How many messages went out. */
    public static class Output implements io.kestra.core.models.tasks.Output {
        private final Integer messagesCount;

        Output(Integer messagesCount) {
            this.messagesCount = messagesCount;
        }

        public Integer getMessagesCount() {
            return messagesCount;
        }
    }
}
