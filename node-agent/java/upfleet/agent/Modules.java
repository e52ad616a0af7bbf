package upfleet.agent;

import java.lang.instrument.Instrumentation;
import java.lang.reflect.Method;
import java.util.Collections;
import java.util.HashMap;
import java.util.Map;
import java.util.Set;

/** Opens packages of {@code java.base} to this agent, and to nobody else; by reflection, for Java 8 has no modules. */
final class Modules {
    private Modules() {}

    static void open(Instrumentation instrumentation, Class<?> to, String... packages) throws Exception {
        Method getModule;
        try {
            getModule = Class.class.getMethod("getModule");
        } catch (NoSuchMethodException e) {
            return;
        }
        Object mine = getModule.invoke(to);
        Map<String, Set<Object>> opens = new HashMap<String, Set<Object>>();
        for (String name : packages) {
            opens.put(name, Collections.singleton(mine));
        }
        Class<?> module = Class.forName("java.lang.Module");
        Method redefine = Instrumentation.class.getMethod(
                "redefineModule", module, Set.class, Map.class, Map.class, Set.class, Map.class);
        redefine.invoke(instrumentation, getModule.invoke(Object.class), Collections.emptySet(), Collections.emptyMap(),
                opens, Collections.emptySet(), Collections.emptyMap());
    }
}
