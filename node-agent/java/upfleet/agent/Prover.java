package upfleet.agent;

import java.lang.instrument.Instrumentation;
import java.net.URL;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.IdentityHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** Says of each class of a plan, in each loader that has it, what is in force. Changes nothing. */
final class Prover {
    private static final int MOST_LOADERS = 300;

    private final Instrumentation instrumentation;
    private final Records records;
    private final Plan plan;
    private final Plan active;
    private final boolean standing;
    private final Map<String, List<Class<?>>> loaded = new HashMap<String, List<Class<?>>>();
    private final Set<ClassLoader> loaders = Collections.newSetFromMap(new IdentityHashMap<ClassLoader, Boolean>());

    Prover(Instrumentation instrumentation, Records records, Plan plan, Plan active, Map<String, Object> state) {
        this.instrumentation = instrumentation;
        this.records = records;
        this.plan = plan;
        this.active = active;
        this.standing = state.get("installed") != null;
    }

    void prove(Report report) throws Exception {
        report.add("set\t" + plan.set + "\t" + plan.mechanism);
        report.add("active\t" + (active.set.isEmpty() ? "-" : active.set));
        for (Class<?> c : instrumentation.getAllLoadedClasses()) {
            if (plan.targets.containsKey(c.getName())) {
                List<Class<?>> same = loaded.get(c.getName());
                if (same == null) {
                    same = new ArrayList<Class<?>>();
                    loaded.put(c.getName(), same);
                }
                same.add(c);
            }
            if (c.getClassLoader() != null && loaders.size() < MOST_LOADERS) {
                loaders.add(c.getClassLoader());
            }
        }
        for (String name : new java.util.TreeSet<String>(plan.targets.keySet())) {
            Plan.Target target = plan.targets.get(name);
            List<Class<?>> classes = loaded.get(name);
            if (classes == null) {
                absent(target, report);
                continue;
            }
            for (Class<?> c : classes) {
                String[] record = records.get(c.getClassLoader(), name);
                if (record == null) {
                    record = found(target, c);
                }
                report.add(Report.line(target, Report.standing(target, record), Bytes.loader(c.getClassLoader()), record));
            }
        }
    }

    /** A class that no transformer of ours saw: it is what its loader finds, where its source agrees. */
    private String[] found(Plan.Target target, Class<?> c) {
        String source = Bytes.source(c.getProtectionDomain());
        String original = "";
        String problem = "";
        String inForce = "";
        try {
            URL url = Bytes.url(c.getClassLoader(), target.name);
            byte[] file = Bytes.find(url);
            original = file == null ? "" : Bytes.sha256(file);
            boolean module = plan.mechanism.equals("patch-module");
            boolean here = url == null || source.isEmpty() || source.equals(Bytes.place(url)) || source.equals(url.toString())
                    || (url.toString().startsWith(source) && source.contains(":"));
            if (file == null) {
                problem = "its loader does not find its class file";
            } else if (!module && !here) {
                problem = "it was loaded from " + source + ", its loader would now take " + Bytes.place(url);
            } else if (original.equals(target.patched)) {
                inForce = original;
            } else if (!target.patched.isEmpty()) {
                problem = "the application's own class is loaded, nothing replaced it";
            }
        } catch (Throwable e) {
            problem = "its class file can't be read: " + e;
        }
        return new String[] {original, inForce, source, problem, plan.mechanism};
    }

    private void absent(Plan.Target target, Report report) {
        if (target.patched.isEmpty()) {
            return;
        }
        String[] record = {"", "", "", "", plan.mechanism};
        Plan.Target obeyed = active.targets.get(target.name);
        if (standing && obeyed != null && obeyed.patched.equals(target.patched)) {
            record[Records.MECHANISM] = plan.mechanism.isEmpty() ? "java-agent" : plan.mechanism;
            report.add(Report.line(target, "armed", "", record));
            return;
        }
        List<ClassLoader> asked = new ArrayList<ClassLoader>();
        asked.add(ClassLoader.getSystemClassLoader());
        asked.addAll(loaders);
        String other = "";
        boolean found = false;
        for (ClassLoader loader : asked) {
            try {
                URL url = Bytes.url(loader, target.name);
                byte[] file = Bytes.find(url);
                if (file == null) {
                    continue;
                }
                if (Bytes.sha256(file).equals(target.patched)) {
                    found = true;
                    record[Records.SOURCE] = Bytes.place(url);
                    record[Records.ORIGINAL] = target.patched;
                } else if (other.isEmpty()) {
                    other = Bytes.loader(loader) + " would take it from " + Bytes.place(url);
                }
            } catch (Throwable e) {
                // A loader that fails to look up finds nothing.
            }
        }
        boolean spring = plan.mechanism.equals("properties-launcher");
        record[Records.PROBLEM] = found && (other.isEmpty() || spring) ? ""
                : other.isEmpty() ? "no class loader finds it, and no transformer stands" : other;
        report.add(Report.line(target, record[Records.PROBLEM].isEmpty() ? "armed" : "old", "", record));
    }
}
