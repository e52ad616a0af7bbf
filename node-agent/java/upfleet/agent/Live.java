package upfleet.agent;

import java.lang.instrument.Instrumentation;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Set;

/** Brings a running JVM to a stack: every class of the change, in every loader that has it, or none. */
final class Live {
    private static final int MOST_ROUNDS = 5;

    private final Instrumentation instrumentation;
    private final Records records;
    private final Patcher patcher;
    private final Report report;

    Live(Instrumentation instrumentation, Records records, Patcher patcher, Report report) {
        this.instrumentation = instrumentation;
        this.records = records;
        this.patcher = patcher;
        this.report = report;
    }

    /**
     * Before the application: what is loaded already, by other agents, is replaced where the JVM allows. Where it does
     * not, those classes are old, and the others are patched all the same.
     */
    void start(Plan plan) {
        List<Class<?>> early = concerned(plan);
        Report refusals = new Report();
        if (!early.isEmpty() && !new Live(instrumentation, records, patcher, refusals).attempt(plan, early)) {
            report.note("start", "loaded before the agent: " + refusals.firstError());
        }
    }

    /** In a running JVM. On a failure everything is as it was. */
    void set(Plan plan) {
        Plan before = patcher.active();
        Plan wanted = widened(plan, before);
        for (Class<?> c : concerned(wanted)) {
            if (!instrumentation.isModifiableClass(c)) {
                report.error("SCHEMA", c.getName(), Bytes.loader(c.getClassLoader()), "the JVM lets nobody change it");
                return;
            }
            Plan.Target target = wanted.targets.get(c.getName());
            if (!target.patched.isEmpty()) {
                patcher.additions().complete(wanted, c);
            }
        }
        if (!patcher.additions().problem().isEmpty()) {
            report.error("AGENT", "a class that no base has can't be defined: " + patcher.additions().problem());
            return;
        }
        long begin = System.nanoTime();
        Set<String> changed = new HashSet<String>();
        for (int round = 0; round < MOST_ROUNDS; round++) {
            List<Class<?>> batch = concerned(wanted);
            if (batch.isEmpty() && round > 0) {
                break;
            }
            if (!batch.isEmpty() && !attempt(wanted, batch)) {
                if (round > 0) {
                    undo(before, wanted);
                }
                return;
            }
            for (Class<?> c : batch) {
                changed.add(c.getName());
            }
            // What loads from here on follows the new stack; what loaded meanwhile comes in the next round.
            patcher.activate(wanted);
        }
        report.note("switched", changed.size() + " classes in " + (System.nanoTime() - begin) / 1000 + " microseconds");
        if (!changed.isEmpty()) {
            oldFrames(changed);
        }
    }

    private void undo(Plan before, Plan wanted) {
        Plan back = widened(before, wanted);
        patcher.activate(back);
        List<Class<?>> batch = concerned(back);
        if (!batch.isEmpty()) {
            attempt(back, batch);
        }
    }

    /** A plan that also says of each class of the other one, which it does not have, that it goes back. */
    private static Plan widened(Plan plan, Plan other) {
        for (Plan.Target old : other.targets.values()) {
            if (!plan.targets.containsKey(old.name)) {
                Plan.Target back = new Plan.Target();
                back.name = old.name;
                back.patched = "";
                back.accepts = old.accepts;
                back.others = old.others;
                plan.put(back);
            }
        }
        return plan;
    }

    /** The loaded classes that are not, as far as we know, what the plan wants. */
    private List<Class<?>> concerned(Plan plan) {
        List<Class<?>> list = new ArrayList<Class<?>>();
        for (Class<?> c : instrumentation.getAllLoadedClasses()) {
            Plan.Target target = plan.targets.get(c.getName());
            if (target == null) {
                continue;
            }
            String[] record = records.get(c.getClassLoader(), target.name);
            boolean right = record != null && Report.standing(target, record).equals("proved");
            if (!right && !(target.patched.isEmpty() && target.accepts.isEmpty())) {
                list.add(c);
            }
        }
        return list;
    }

    private boolean attempt(Plan plan, List<Class<?>> classes) {
        Patcher.Batch batch = new Patcher.Batch(plan);
        patcher.begin(batch);
        try {
            instrumentation.retransformClasses(classes.toArray(new Class<?>[0]));
        } catch (Throwable e) {
            refused(batch, classes, e);
            return false;
        } finally {
            patcher.end();
        }
        for (Class<?> c : classes) {
            String[] record = batch.records.get(c);
            if (record != null) {
                patcher.record(plan.targets.get(c.getName()), c.getClassLoader(), record);
            }
        }
        return true;
    }

    /** Says which class stood in the way: by our own judgement, otherwise by asking the JVM class by class. */
    private void refused(Patcher.Batch batch, List<Class<?>> classes, Throwable problem) {
        for (Map.Entry<String, String[]> entry : batch.refusals.entrySet()) {
            report.error("BASE", (Object[]) entry.getValue());
        }
        if (!batch.refusals.isEmpty()) {
            return;
        }
        int named = 0;
        for (Class<?> c : classes) {
            Patcher.Batch one = new Patcher.Batch(batch.plan);
            one.veto = Agent.class;
            patcher.begin(one);
            try {
                instrumentation.retransformClasses(c, Agent.class);
            } catch (Throwable e) {
                // With the veto it always ends so; before it comes what the JVM has against this class.
                if (!one.vetoed) {
                    named++;
                    report.error("SCHEMA", c.getName(), Bytes.loader(c.getClassLoader()), e);
                }
            } finally {
                patcher.end();
            }
        }
        if (named == 0) {
            report.error("SCHEMA", "", "", problem);
        }
    }

    /** Threads that stand in a changed class twice: best effort, for the JVM does not say which version a frame runs. */
    private void oldFrames(Set<String> changed) {
        Set<String> first = frames(changed);
        if (first.isEmpty()) {
            return;
        }
        try {
            Thread.sleep(50);
        } catch (InterruptedException e) {
            return;
        }
        first.retainAll(frames(changed));
        for (String frame : first) {
            report.note("old-frame", frame + " may still run the old code, until it returns");
        }
    }

    private static Set<String> frames(Set<String> changed) {
        Set<String> frames = new HashSet<String>();
        for (Map.Entry<Thread, StackTraceElement[]> entry : Thread.getAllStackTraces().entrySet()) {
            for (StackTraceElement frame : entry.getValue()) {
                if (changed.contains(frame.getClassName())) {
                    frames.add("thread " + entry.getKey().getName() + " in " + frame.getClassName() + "."
                            + frame.getMethodName());
                }
            }
        }
        return frames;
    }
}
