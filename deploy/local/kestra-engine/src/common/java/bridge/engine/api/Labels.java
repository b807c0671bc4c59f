package bridge.engine.api;

import io.kestra.core.models.Label;
import io.micronaut.core.annotation.Nullable;
import io.micronaut.http.HttpStatus;
import io.micronaut.http.exceptions.HttpStatusException;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;

/** Labels as a query gives them, {@code key:value} each. */
final class Labels {
    private static final List<String> SETTABLE = List.of(Label.CORRELATION_ID, Label.FROM);

    private Labels() {
    }

    /** The labels of a new execution; one of Kestra's own is refused. */
    static List<Label> parse(@Nullable List<String> texts) {
        return map(texts).entrySet().stream().map(entry -> label(entry.getKey(), entry.getValue())).toList();
    }

    /** Split on the first colon; a half that is empty and a key that comes twice are refused. */
    static Map<String, String> map(@Nullable List<String> texts) {
        try {
            return (texts == null ? List.<String>of() : texts).stream()
                .map(Labels::split)
                .collect(Collectors.toMap(Map.Entry::getKey, Map.Entry::getValue));
        } catch (IllegalStateException e) {
            throw refused("The queryString parameter keys contains duplicities: " + e.getMessage());
        }
    }

    private static Map.Entry<String, String> split(String text) {
        var at = text.indexOf(':');
        if (at < 1) {
            throw refused("Can't split the queryString parameter by ':'");
        }
        var label = Map.entry(text.substring(0, at).trim(), text.substring(at + 1).trim());
        if (label.getKey().isEmpty() || label.getValue().isEmpty()) {
            throw refused("Can't have an empty part of queryString");
        }
        return label;
    }

    private static HttpStatusException refused(String reason) {
        return new HttpStatusException(HttpStatus.UNPROCESSABLE_ENTITY, reason);
    }

    private static Label label(String key, String value) {
        if (key.startsWith(Label.SYSTEM_PREFIX) && !SETTABLE.contains(key)) {
            throw new IllegalArgumentException("System labels can only be set by Kestra itself, offending label: " + key + "=" + value);
        }
        return new Label(key, value);
    }
}
