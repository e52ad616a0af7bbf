//! Sets on a real disk: built, switched, read back, damaged, pruned.

use std::fs;

use upfleet_domain::{digest::Digest, id::ComponentId, state::ReleaseRef};

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    place: Place,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let component: ComponentId = "app".parse().unwrap();
    let place = Place::new(&component, &dir.path().join("app.jar"));
    crate::exec::files::make_store(&place).unwrap();
    Fixture { dir, place }
}

impl Fixture {
    fn layer(&self, number: u32) -> Layer {
        let bytes = format!("jar {number}");
        let artifact = Digest::of(bytes.as_bytes());
        fs::write(self.place.version(&artifact), bytes).unwrap();
        let release = ReleaseRef {
            component: "app".parse().unwrap(),
            version: format!("patch{number}").parse().unwrap(),
            sequence: u64::from(number),
            manifest: Digest::of(format!("manifest {number}").as_bytes()),
            artifact,
        };
        Layer { number, release, retired: false, contains: vec![] }
    }

    fn set(&self, layers: &[Layer]) -> SetFiles {
        let made = SetFiles::new(&self.place, layers, Mechanism::ClassPath, |dir| {
            let jar = |layer: &Layer| jar_name(layer.number, &layer.release.artifact);
            let paths: Vec<_> =
                layers.iter().map(|layer| dir.join(jar(layer)).display().to_string()).collect();
            let args = SetFile {
                name: "java.args".into(),
                content: Content::Bytes(format!("-cp {}", paths.join(":")).into_bytes()),
            };
            let link = |layer: &Layer| SetFile {
                name: jar(layer),
                content: Content::Version(layer.release.artifact),
            };
            Ok(layers.iter().map(link).chain([args]).collect())
        });
        made.unwrap()
    }
}

#[test]
fn a_set_is_switched_to_and_read_back() {
    let fixture = fixture();
    let place = &fixture.place;
    assert_eq!(current(place), Ok(None));
    let (nine, ten) = (fixture.layer(9), fixture.layer(10));
    let first = fixture.set(std::slice::from_ref(&nine));
    let both = fixture.set(&[ten.clone(), nine.clone()]);
    assert_ne!(first.dir, both.dir);
    assert_eq!(fixture.set(&[ten.clone(), nine.clone()]), both, "the same stack is the same set");
    for set in [&first, &both, &both, &first] {
        switch(place, Some(set)).unwrap();
        let found = current(place).unwrap().unwrap();
        assert_eq!((&found.dir, &found.layers), (&set.dir, &set.layers));
        let args = fs::read_to_string(place.current_stack().join("java.args")).unwrap();
        assert!(args.contains(&*set.dir.to_string_lossy()) && !args.contains("current"), "{args}");
    }
    assert_eq!(layers(place).unwrap(), [nine]);
    switch(place, None).unwrap();
    switch(place, None).unwrap();
    assert_eq!(current(place), Ok(None));
}

/// T04, on the agent's side.
#[test]
fn damage_is_seen_and_mended_by_the_next_switch() {
    let fixture = fixture();
    let place = &fixture.place;
    let layer = fixture.layer(9);
    let set = fixture.set(std::slice::from_ref(&layer));
    let jar = set.dir.join(jar_name(9, &layer.release.artifact));
    type Damage<'a> = &'a dyn Fn();
    let damages: [Damage<'_>; 4] = [
        &|| fs::write(set.dir.join("java.args"), "-cp elsewhere").unwrap(),
        &|| fs::remove_file(&jar).unwrap(),
        &|| fs::write(set.dir.join(STACK), "{}").unwrap(),
        &|| fs::remove_file(set.dir.join(STACK)).unwrap(),
    ];
    for damage in damages {
        switch(place, Some(&set)).unwrap();
        damage();
        assert_eq!(current(place).unwrap_err().code, ReasonCode::StackDamaged);
        switch(place, Some(&set)).unwrap();
        assert_eq!(layers(place).unwrap(), std::slice::from_ref(&layer));
    }
    // The version itself is cut: nothing can mend that but fetching it again.
    fs::write(&jar, "ja").unwrap();
    assert_eq!(switch(place, Some(&set)).unwrap_err().code, ReasonCode::StackDamaged);
}

#[test]
fn a_link_that_leads_elsewhere_is_damage() {
    let fixture = fixture();
    let place = &fixture.place;
    switch(place, Some(&fixture.set(&[fixture.layer(9)]))).unwrap();
    fs::remove_file(place.current_stack()).unwrap();
    std::os::unix::fs::symlink(fixture.dir.path(), place.current_stack()).unwrap();
    assert_eq!(current(place).unwrap_err().code, ReasonCode::StackDamaged);
}

#[test]
fn what_nothing_names_is_pruned() {
    let fixture = fixture();
    let place = &fixture.place;
    let all: Vec<SetFiles> = (1..=4).map(|number| fixture.set(&[fixture.layer(number)])).collect();
    for set in &all {
        switch(place, Some(set)).unwrap();
    }
    fs::create_dir(place.stacks().join(".half")).unwrap();
    fs::write(place.stacks().join("stray.jar"), "").unwrap();
    // 4 is in force, 3 is kept, a process uses 2.
    prune(place, &[all[2].layers.clone()], &[all[1].dir.join("java.args")]).unwrap();
    let there: Vec<bool> = all.iter().map(|set| set.dir.exists()).collect();
    assert_eq!(there, [false, true, true, true]);
    assert_eq!(fs::read_dir(place.stacks()).unwrap().count(), 4, "and the link");
    assert_eq!(layers(place).unwrap(), all[3].layers);
}
