package upfleet.agent;

import java.io.File;
import java.lang.instrument.Instrumentation;
import java.lang.reflect.Method;
import java.net.URL;
import java.net.URLClassLoader;
import java.security.ProtectionDomain;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.WeakHashMap;
import java.util.jar.Attributes;
import java.util.jar.JarFile;
import java.util.jar.Manifest;

/**
 * Brings classes that no base has to the loaders that need them.
 *
 * <p>A class is defined in the loader of a patched class of its own family or package, with that one's protection
 * domain, so that package-private access, signers, sealed packages and modules hold. That happens when the patched class
 * loads. Where the new class is derived from the very class that loads just then, it can't be defined yet: the JVM
 * would meet a circle. Then the loader finds it by itself, later, in a jar at the end of its search path; and where
 * packages are sealed, signed or in a module, the application's loader gets both before the application starts.
 */
final class Additions {
    private final Instrumentation instrumentation;
    private final Records defined;
    private final Journal journal;
    private final String mechanism;
    private final Map<ClassLoader, Set<String>> done =
            Collections.synchronizedMap(new WeakHashMap<ClassLoader, Set<String>>());
    private Method define;
    private Method loaded;
    private Method addUrl;
    private String problem = "";

    Additions(Instrumentation instrumentation, Records records, Journal journal, String mechanism) {
        this.instrumentation = instrumentation;
        this.defined = records;
        this.journal = journal;
        this.mechanism = mechanism;
    }

    /** Why classes can't be defined in other loaders; empty where they can. */
    String problem() {
        return problem;
    }

    /** Before the application starts: what its own loader would not find by itself in time. */
    void prepare(Plan plan, Report report) {
        List<Plan.Target> added = plan.additions();
        if (added.isEmpty()) {
            return;
        }
        open();
        ClassLoader system = ClassLoader.getSystemClassLoader();
        boolean append = false;
        for (Plan.Target target : added) {
            Plan.Target sibling = sibling(plan, target);
            try {
                if (sibling == null || !strict(system, sibling.name)) {
                    append = true;
                    continue;
                }
                // Its transformation defines what can be; the rest can be now that it is there.
                Class<?> there = Class.forName(sibling.name, false, system);
                defineAll(plan, there.getClassLoader(), there.getProtectionDomain(), null);
            } catch (ClassNotFoundException e) {
                append = true;
            } catch (Throwable e) {
                report.note("addition", target.name + ": " + e);
            }
        }
        if (append && plan.additions != null) {
            try {
                instrumentation.appendToSystemClassLoaderSearch(new JarFile(new File(plan.additions)));
            } catch (Throwable e) {
                report.note("addition", "the application's loader does not take " + plan.additions + ": " + e);
            }
        }
    }

    /** For classes that are loaded already: all that belongs to them. */
    void complete(Plan plan, Class<?> there) {
        if (!plan.additions().isEmpty()) {
            open();
            defineAll(plan, there.getClassLoader(), there.getProtectionDomain(), null);
        }
    }

    /** While a patched class loads: what belongs to it, as far as it does not need that class itself. */
    void define(Plan plan, Plan.Target loading, ClassLoader loader, ProtectionDomain domain) {
        if (loading.isNew() || loader == null || plan.additions().isEmpty()) {
            return;
        }
        open();
        if (loader instanceof URLClassLoader && plan.additions != null && addUrl != null && first(loader, "")) {
            try {
                addUrl.invoke(loader, new File(plan.additions).toURI().toURL());
            } catch (Throwable e) {
                problem = Bytes.plain(e);
            }
        }
        defineAll(plan, loader, domain, loading.name);
    }

    private void defineAll(Plan plan, ClassLoader loader, ProtectionDomain domain, String loading) {
        if (define == null || loader == null) {
            return;
        }
        List<Plan.Target> left = new ArrayList<Plan.Target>();
        for (Plan.Target target : plan.additions()) {
            Plan.Target sibling = sibling(plan, target);
            boolean here = sibling == null
                    ? !above(loader, target.name)
                    : sibling.name.equals(loading) || defines(loader, sibling.name);
            if (here && !defines(loader, target.name)) {
                left.add(target);
            }
        }
        for (boolean progress = true; progress && !left.isEmpty();) {
            progress = false;
            for (Plan.Target target : new ArrayList<Plan.Target>(left)) {
                if (ready(loader, target, loading)) {
                    left.remove(target);
                    progress = true;
                    if (first(loader, target.name)) {
                        define(loader, target, domain);
                    }
                }
            }
        }
    }

    private void define(ClassLoader loader, Plan.Target target, ProtectionDomain domain) {
        try {
            define.invoke(loader, target.name, target.bytes, 0, target.bytes.length, domain);
            // Within a transformation the JVM calls no transformer for it.
            defined.put(loader, target.name,
                    new String[] {target.patched, target.patched, Bytes.source(domain), "", mechanism});
            journal.event(target, loader, defined.get(loader, target.name));
        } catch (Throwable e) {
            Throwable cause = e.getCause() == null ? e : e.getCause();
            problem = Bytes.plain(target.name + ": " + cause);
            forget(loader, target.name);
        }
    }

    /** Whether all it is derived from is there, so that defining it loads nothing. */
    private boolean ready(ClassLoader loader, Plan.Target target, String loading) {
        try {
            for (String parent : ClassFile.parents(target.bytes)) {
                if (parent.equals(loading) || !(isLoaded(loader, parent) || ofTheJdk(parent))) {
                    return false;
                }
            }
            return true;
        } catch (Exception e) {
            return false;
        }
    }

    private static boolean ofTheJdk(String name) {
        try {
            Class.forName(name, false, ClassLoader.getSystemClassLoader().getParent());
            return true;
        } catch (Throwable e) {
            return false;
        }
    }

    private boolean isLoaded(ClassLoader loader, String name) {
        for (ClassLoader at = loader; at != null; at = at.getParent()) {
            try {
                if (loaded.invoke(at, name) != null) {
                    return true;
                }
            } catch (Throwable e) {
                return false;
            }
        }
        return false;
    }

    private boolean defines(ClassLoader loader, String name) {
        try {
            Class<?> there = (Class<?>) loaded.invoke(loader, name);
            return there != null && there.getClassLoader() == loader;
        } catch (Throwable e) {
            return false;
        }
    }

    private boolean above(ClassLoader loader, String name) {
        for (ClassLoader at = loader.getParent(); at != null; at = at.getParent()) {
            Set<String> names = done.get(at);
            if (names != null && names.contains(name)) {
                return true;
            }
        }
        return false;
    }

    private boolean first(ClassLoader loader, String name) {
        synchronized (done) {
            Set<String> names = done.get(loader);
            if (names == null) {
                names = new HashSet<String>();
                done.put(loader, names);
            }
            return names.add(name);
        }
    }

    private void forget(ClassLoader loader, String name) {
        synchronized (done) {
            done.get(loader).remove(name);
        }
    }

    /** The patched class that a new one belongs to: of its family, otherwise of its package. */
    static Plan.Target sibling(Plan plan, Plan.Target added) {
        String name = added.name;
        for (int dollar = name.lastIndexOf('$'); dollar > 0; dollar = name.lastIndexOf('$', dollar - 1)) {
            Plan.Target outer = plan.targets.get(name.substring(0, dollar));
            if (outer != null && !outer.isNew() && !outer.patched.isEmpty()) {
                return outer;
            }
        }
        String space = name.substring(0, name.lastIndexOf('.') + 1);
        Plan.Target sibling = null;
        for (Plan.Target target : plan.targets.values()) {
            boolean same = target.name.startsWith(space) && target.name.indexOf('.', space.length()) < 0;
            if (same && !target.isNew() && !target.patched.isEmpty()
                    && (sibling == null || target.name.compareTo(sibling.name) < 0)) {
                sibling = target;
            }
        }
        return sibling;
    }

    /** Whether the class's package takes nothing from elsewhere: sealed, signed, or in a module. */
    private static boolean strict(ClassLoader system, String name) throws Exception {
        URL url = system.getResource(name.replace('.', '/') + ".class");
        if (url == null) {
            return false;
        }
        if (System.getProperty("jdk.module.main") != null) {
            return true;
        }
        if (!url.toString().startsWith("jar:file:")) {
            return false;
        }
        JarFile jar = new JarFile(new File(Bytes.place(url)));
        try {
            Manifest manifest = jar.getManifest();
            if (manifest == null) {
                return false;
            }
            String space = name.substring(0, name.lastIndexOf('.') + 1).replace('.', '/');
            Attributes own = manifest.getAttributes(space);
            String sealed = own == null ? null : own.getValue(Attributes.Name.SEALED);
            if (sealed == null) {
                sealed = manifest.getMainAttributes().getValue(Attributes.Name.SEALED);
            }
            Attributes entry = manifest.getAttributes(name.replace('.', '/') + ".class");
            return "true".equalsIgnoreCase(sealed) || (entry != null && !entry.isEmpty());
        } finally {
            jar.close();
        }
    }

    private synchronized void open() {
        if (define != null || !problem.isEmpty()) {
            return;
        }
        try {
            Modules.open(instrumentation, Additions.class, "java.lang", "java.net");
            Method d = ClassLoader.class.getDeclaredMethod(
                    "defineClass", String.class, byte[].class, int.class, int.class, ProtectionDomain.class);
            Method f = ClassLoader.class.getDeclaredMethod("findLoadedClass", String.class);
            Method a = URLClassLoader.class.getDeclaredMethod("addURL", URL.class);
            d.setAccessible(true);
            f.setAccessible(true);
            a.setAccessible(true);
            loaded = f;
            addUrl = a;
            define = d;
        } catch (Throwable e) {
            problem = Bytes.plain(e);
        }
    }
}
