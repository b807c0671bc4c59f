package bridge.engine.api;

/** Where the API begins. Open-source Kestra has one tenant, which a path may leave out. */
public final class Api {
    public static final String TENANT = "main";
    static final String ROOT = "/api/v1{/tenant}";
    static final String EXECUTIONS = ROOT + "/executions";

    private Api() {
    }
}
