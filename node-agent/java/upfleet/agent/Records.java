package upfleet.agent;

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.WeakHashMap;

/**
 * What was seen of each patched class in each loader. Lives in the shared state, in JDK types: a record is
 * {original, in force, source, problem, mechanism}; "in force" is the digest of the bytes given to the JVM, empty where
 * the application's own were left alone.
 */
final class Records {
    static final int ORIGINAL = 0;
    static final int IN_FORCE = 1;
    static final int SOURCE = 2;
    static final int PROBLEM = 3;
    static final int MECHANISM = 4;

    private final Map<ClassLoader, Map<String, String[]>> all;

    @SuppressWarnings("unchecked")
    Records(Map<String, Object> state) {
        synchronized (state) {
            if (state.get("records") == null) {
                state.put("records", new WeakHashMap<ClassLoader, Map<String, String[]>>());
            }
            all = (Map<ClassLoader, Map<String, String[]>>) state.get("records");
        }
    }

    String[] get(ClassLoader loader, String name) {
        synchronized (all) {
            Map<String, String[]> classes = all.get(loader);
            return classes == null ? null : classes.get(name);
        }
    }

    void put(ClassLoader loader, String name, String[] record) {
        synchronized (all) {
            Map<String, String[]> classes = all.get(loader);
            if (classes == null) {
                classes = new HashMap<String, String[]>();
                all.put(loader, classes);
            }
            classes.put(name, record);
        }
    }

    List<ClassLoader> loaders() {
        synchronized (all) {
            return new ArrayList<ClassLoader>(all.keySet());
        }
    }
}
