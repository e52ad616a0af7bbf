package upfleet.agent;

import java.lang.instrument.ClassFileTransformer;
import java.lang.instrument.Instrumentation;
import java.util.Map;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.locks.ReentrantLock;

/** Carries out one request. The bootstrap calls {@code run}; nothing else of this package is ever called from outside. */
public final class Agent {
    private final Map<String, Object> state;
    private final Instrumentation instrumentation;
    private final Records records;
    private final Journal journal;
    private final Report report = new Report();

    private Agent(Map<String, Object> state) {
        this.state = state;
        this.instrumentation = (Instrumentation) state.get("instrumentation");
        this.records = new Records(state);
        this.journal = new Journal(state);
    }

    /** Does what the request says, one at a time, and answers in its report. */
    public static void run(String request, Instrumentation instrumentation, boolean start, Map<String, Object> state)
            throws Exception {
        Plan plan = Plan.read(request);
        ReentrantLock lock;
        synchronized (state) {
            // Transformers belong to the first: only there they can be taken away again.
            if (state.get("instrumentation") == null) {
                state.put("instrumentation", instrumentation);
                state.put("lock", new ReentrantLock());
                state.put("mechanism", start ? "java-agent" : "live");
            }
            lock = (ReentrantLock) state.get("lock");
        }
        Agent agent = new Agent(state);
        if (!lock.tryLock(6, TimeUnit.SECONDS)) {
            agent.report.error("BUSY", "another request is being carried out in this JVM");
        } else {
            try {
                agent.obey(plan);
            } catch (Throwable e) {
                agent.report.error("AGENT", e);
            } finally {
                lock.unlock();
            }
        }
        agent.answer(plan, start);
    }

    private void obey(Plan plan) throws Exception {
        report.add("jvm\t" + Journal.process() + "\t" + Bytes.plain(System.getProperty("java.version")) + "\t"
                + Bytes.plain(System.getProperty("java.vendor")));
        if (plan.operation.equals("prove")) {
            new Prover(instrumentation, records, plan, Plan.thaw((Object[]) state.get("active")), state).prove(report);
            return;
        }
        plan.load();
        boolean start = plan.operation.equals("start");
        journal.open(plan.journal, report);
        if (start) {
            journal.line("set\t" + plan.set + "\t" + plan.mechanism);
        }
        Patcher patcher = install(start ? plan : null);
        Live live = new Live(instrumentation, records, patcher, report);
        if (start) {
            patcher.additions().prepare(plan, report);
            live.start(plan);
        } else {
            live.set(plan);
        }
        Plan holds = patcher.active();
        if (!report.failed()) {
            state.put("active", plan.freeze());
        }
        tell(holds);
        new Prover(instrumentation, records, plan, holds, state).prove(report);
    }

    /** The journal says what holds now, also after a change that failed. Where it began it already says the stack. */
    private void tell(Plan holds) throws Exception {
        Report now = new Report();
        new Prover(instrumentation, records, holds, holds, state).prove(now);
        if (!holds.operation.equals("start") && !holds.set.isEmpty()) {
            journal.line("set\t" + holds.set + "\t" + holds.mechanism);
        }
        for (String line : now.lines()) {
            if (line.startsWith("class\t")) {
                journal.line(line);
            }
        }
        journal.line("end\tok");
    }

    /** Puts this version's transformer in the place of an earlier one's. It obeys what that one obeyed. */
    @SuppressWarnings("unchecked")
    private Patcher install(Plan first) throws Exception {
        Bytes.sha256(new byte[0]);
        Plan active = first != null ? first : Plan.thaw((Object[]) state.get("active"));
        String mechanism = (String) state.get("mechanism");
        Additions additions = new Additions(instrumentation, records, journal, mechanism);
        Patcher patcher = new Patcher(records, journal, additions, active, mechanism);
        ((AtomicReference<ClassFileTransformer>) state.get("delegate")).set(patcher);
        if (state.get("installed") == null) {
            instrumentation.addTransformer((ClassFileTransformer) state.get("transformer"), true);
            state.put("installed", Boolean.TRUE);
        }
        return patcher;
    }

    private void answer(Plan plan, boolean start) throws Exception {
        if (start && report.failed()) {
            journal.line("error\tAGENT\t" + Bytes.plain(report.firstError()));
            journal.line("end\tfailed");
        }
        if (plan.report != null) {
            report.write(plan.report);
        } else if (report.failed() && start) {
            System.err.println("upfleet: " + report.firstError());
        }
    }
}
