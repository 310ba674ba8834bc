//! Paths of a store whose files lie elsewhere than its paths say.

use super::each;
use crate::support::skip;

#[test]
fn a_store_in_a_folder() {
    each("run -p: paths of a store elsewhere", |bench| {
        if bench
            .sh("unshare --mount true || unshare --user --map-root-user --mount true")
            .status
            != 0
        {
            return skip(
                "paths of a store elsewhere",
                "no namespaces are allowed here",
            );
        }
        bench.ask("mkdir -p ../tool/bin; printf '#!/bin/sh\\necho tool $0 $@\\nexit 3\\n' >../tool/bin/tool; chmod +x ../tool/bin/tool");
        let path = bench.ask("tk --store ../elsewhere add ../tool");
        assert!(path.starts_with("/nix/store/"), "{path}");
        let run = format!("tk run --store ../elsewhere -p {path} -- tool a 'b c'");
        for line in [run.clone(), run] {
            let done = bench.sh(&line);
            assert_eq!(done.status, 3, "{done:?}");
            assert_eq!(
                done.stdout,
                format!("tool {path}/bin/tool a b c\n"),
                "{done:?}"
            );
        }
        assert_eq!(
            bench.sh(&format!("ls {path}")).status,
            2,
            "it is in the store here"
        );
        let who = format!("tk run --store ../elsewhere -p {path} -- sh -c 'id -u; pwd'");
        let folder = bench.show("flake");
        assert_eq!(bench.ask(&who), format!("{}\n{folder}", bench.ask("id -u")));
    });
}
