package bridge.engine.api;

import io.kestra.core.models.Label;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** The labels of a new execution, {@code key:value} each. */
final class Labels {
    private static final List<String> SETTABLE = List.of(Label.CORRELATION_ID, Label.FROM);

    private Labels() {
    }

    /** Split on the first colon; an empty value or a label of Kestra's own is a 422, a key given twice a 409. */
    static List<Label> parse(List<String> texts) {
        var labels = new LinkedHashMap<String, String>();
        for (var text : texts) {
            var label = split(text);
            if (labels.putIfAbsent(label.getKey(), label.getValue()) != null) {
                throw new IllegalStateException("Duplicate key " + label.getKey());
            }
        }
        return labels.entrySet().stream().map(entry -> label(entry.getKey(), entry.getValue())).toList();
    }

    private static Map.Entry<String, String> split(String text) {
        var at = text.indexOf(':');
        if (at < 0 || text.substring(at + 1).isBlank()) {
            throw new IllegalArgumentException("Invalid queryString parameter: '" + text + "'");
        }
        return Map.entry(text.substring(0, at), text.substring(at + 1).trim());
    }

    private static Label label(String key, String value) {
        if (key.startsWith(Label.SYSTEM_PREFIX) && !SETTABLE.contains(key)) {
            throw new IllegalArgumentException("System labels can only be set by Kestra itself, offending label: " + key + "=" + value);
        }
        return new Label(key, value);
    }
}
