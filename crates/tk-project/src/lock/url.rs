use super::InputAttrs;

impl InputAttrs {
    /// It as people write it: `github:owner/repo/rev`, `path:/a`, `git+file:///a?rev=…`. For showing only; what is
    /// of no known kind is shown as JSON.
    pub fn to_url(&self) -> String {
        let text = |name: &str| self.text(name).unwrap_or_default();
        let mut query: Vec<(&str, &str)> = Vec::new();
        let url = match self.kind() {
            kind @ ("github" | "gitlab" | "sourcehut") => {
                query.extend(self.text("host").map(|host| ("host", host)));
                let version = self.text("rev").or(self.text("ref"));
                let version = version.map(|v| format!("/{v}")).unwrap_or_default();
                format!("{kind}:{}/{}{version}", text("owner"), text("repo"))
            }
            "indirect" => {
                let parts = [self.text("id"), self.text("ref"), self.text("rev")];
                format!(
                    "flake:{}",
                    parts.into_iter().flatten().collect::<Vec<_>>().join("/")
                )
            }
            "path" => format!("path:{}", text("path")),
            "git" => {
                query.extend(self.text("ref").map(|name| ("ref", name)));
                query.extend(self.text("rev").map(|rev| ("rev", rev)));
                let prefix = if text("url").starts_with("git:") {
                    ""
                } else {
                    "git+"
                };
                format!("{prefix}{}", text("url"))
            }
            "tarball" | "file" => text("url").to_owned(),
            _ => return self.to_json().to_string(),
        };
        query.extend(self.text("dir").map(|dir| ("dir", dir)));
        let query: Vec<_> = query.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let mark = match (query.is_empty(), url.contains('?')) {
            (true, _) => "",
            (false, true) => "&",
            (false, false) => "?",
        };
        format!("{url}{mark}{}", query.join("&"))
    }
}
