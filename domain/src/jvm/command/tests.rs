//! Command lines as they are met, and as nobody should write them.

use super::*;

fn files(path: &str) -> Result<String, String> {
    match path {
        "app.args" => Ok("-Xmx64m\n# the class path\n-cp \"lib/a b.jar:lib/c.jar\"\n".into()),
        "all.args" => Ok("-cp x.jar com.acme.Main one @two".into()),
        "nested.args" => Ok("@app.args Main".into()),
        "flags" => Ok("+UseSerialGC\nAOTCache=/x.aot # rest".into()),
        other => Err(format!("no {other}")),
    }
}

fn on(java: Option<u16>, env: &[(&str, &str)], line: &str) -> Result<JavaCommand, CommandError> {
    let argv: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    read(&argv, &env, java, &files)
}

fn command(line: &str) -> JavaCommand {
    on(None, &[], line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn module(module: &str, class: Option<&str>) -> Main {
    Main::Module { module: module.into(), class: class.map(str::to_owned) }
}

#[test]
fn what_is_run_and_its_arguments() {
    let (class, jar) = (|name: &str| Main::Class(name.into()), |name: &str| Main::Jar(name.into()));
    for (line, main, arguments) in [
        ("java Main", class("Main"), &[][..]),
        ("/opt/jdk/bin/java -Xmx1g -cp a.jar:b.jar com.acme.Main -x y", class("com.acme.Main"), &["-x", "y"]),
        ("java com/acme/Main", class("com.acme.Main"), &[]),
        ("java -jar app.jar --port 1", jar("app.jar"), &["--port", "1"]),
        ("java -jar -Xmx1g -Da=b app.jar a", jar("app.jar"), &["a"]),
        ("java -p mods -m com.acme/com.acme.Main a", module("com.acme", Some("com.acme.Main")), &["a"]),
        ("java --module-path=mods --module=com.acme a", module("com.acme", None), &["a"]),
        ("java --add-opens java.base/java.lang=ALL-UNNAMED --add-exports x/y=z Main", class("Main"), &[]),
        ("java --add-opens=java.base/java.lang=ALL-UNNAMED Main", class("Main"), &[]),
        ("java --patch-module m=p.jar --add-modules m Main", class("Main"), &[]),
        ("java -javaagent:a.jar=x=y -XX:+UseSerialGC Main -jar z", class("Main"), &["-jar", "z"]),
        ("java -splash:x.png -ea:com.acme... -verbose:gc Main", class("Main"), &[]),
        ("java Hello.java a", Main::Source("Hello.java".into()), &["a"]),
        ("java --source 17 Hello", Main::Source("Hello".into()), &[]),
        ("java @app.args Main @app.args", class("Main"), &["@app.args"]),
        ("java @all.args three", class("com.acme.Main"), &["one", "@two", "three"]),
        ("java --disable-@files @app.args", class("@app.args"), &[]),
        ("java -Dx @@app.args", class("@app.args"), &[]),
        ("java -jar @@app.args", jar("@app.args"), &[]),
        ("java --finalization=disabled Main", class("Main"), &[]),
    ] {
        let read = command(line);
        assert_eq!(
            (&read.main, read.arguments.as_slice()),
            (&main, &*arguments.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>()),
            "{line}"
        );
    }
}

#[test]
fn what_is_no_java_command() {
    for line in
        ["/opt/app/bin/start.sh", "env java Main", "/bin/sh -c java", "", "javac Main.java", "/x/java/run"]
    {
        assert!(matches!(on(None, &[], line), Err(CommandError::NotJava(_))), "{line}");
    }
    for line in [
        "java",
        "java -version",
        "java -cp",
        "java -Xmx1g",
        "java --list-modules",
        "java -d java.base",
        "java -m",
    ] {
        assert_eq!(on(None, &[], line), Err(CommandError::NothingToRun), "{line}");
    }
    assert!(matches!(on(None, &[], "java @gone Main"), Err(CommandError::Unreadable { .. })));
}

#[test]
fn the_class_path_in_force() {
    let env = [("CLASSPATH", "env.jar")];
    for (env, line, path) in [
        (&[][..], "java Main", &["."][..]),
        (&env, "java Main", &["env.jar"]),
        (&env, "java -cp a.jar Main", &["a.jar"]),
        (&[], "java -cp a.jar -classpath b.jar:c Main", &["b.jar", "c"]),
        (&[], "java --class-path=a.jar::b/* Main", &["a.jar", ".", "b/*"]),
        (&env, "java -cp a.jar -jar app.jar", &["app.jar"]),
        (&env, "java -p m -m a/B", &[]),
        (&[], "java @app.args Main", &["lib/a b.jar", "lib/c.jar"]),
        (&[("JDK_JAVA_OPTIONS", "-cp 'x y.jar'")], "java Main", &["x y.jar"]),
        (&[("JDK_JAVA_OPTIONS", "-cp x.jar")], "java -cp a.jar Main", &["a.jar"]),
        (&[("JDK_JAVA_OPTIONS", "@app.args")], "java Main", &["lib/a b.jar", "lib/c.jar"]),
    ] {
        assert_eq!(on(None, env, line).unwrap().class_path_entries(), path, "{line}");
    }
    assert_eq!(command("java -p a:b -m m/M").module_path(), ["a", "b"]);
}

#[test]
fn java_8_knows_neither_argument_files_nor_its_variable() {
    let read = on(Some(8), &[("JDK_JAVA_OPTIONS", "-Xmx1g")], "java @app.args").unwrap();
    assert_eq!(read.main, Main::Class("@app.args".into()));
    assert_eq!(read.options, []);
}

#[test]
fn the_last_word_counts_wherever_it_is_said() {
    let env =
        [("JAVA_TOOL_OPTIONS", "-Xshare:on -XX:AOTCache=t.aot"), ("JDK_JAVA_OPTIONS", "-XX:AOTCache=j.aot")];
    let read = on(None, &env, "java -Xshare:auto -jar a.jar").unwrap();
    assert_eq!(read.prefixed("-Xshare:").unwrap().0, "auto");
    assert_eq!(read.setting("AOTCache").unwrap(), ("j.aot", &Origin::Variable("JDK_JAVA_OPTIONS")));
    let env = [("_JAVA_OPTIONS", "-XX:-EnableDynamicAgentLoading")];
    let read = on(None, &env, "java -XX:+EnableDynamicAgentLoading -jar a.jar").unwrap();
    assert_eq!(read.flag("EnableDynamicAgentLoading"), Some(false));
    let read = command("java -XX:Flags=flags Main");
    assert_eq!((read.flag("UseSerialGC"), read.setting("AOTCache").unwrap().0), (Some(true), "/x.aot"));
    assert_eq!(command("java -javaagent:a.jar=o -javaagent:b.jar M").java_agents(), ["a.jar=o", "b.jar"]);
}

/// Written out, a command means the same.
#[test]
fn flat_commands_mean_the_same() {
    for line in [
        "java @app.args Main @x",
        "java @all.args b",
        "java -Da @@x a",
        "java -jar @@a.jar",
        "java -p m -m a/b c",
    ] {
        let read = command(line);
        let again = super::read(&read.flat, &BTreeMap::new(), None, &files).unwrap();
        assert_eq!((again.main, again.arguments), (read.main, read.arguments), "{line}");
        assert_eq!(again.options.len(), read.options.len(), "{line}");
        assert_eq!(again.flat, read.flat);
        assert!(again.main_at.is_some());
    }
    assert_eq!(command("java -Xmx1g Main x").main_at, Some(2));
    assert_eq!(command("java @all.args").main_at, None);
}
