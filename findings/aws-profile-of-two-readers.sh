#!/usr/bin/env bash
# Package and version: boto3 1.40.0 with botocore 1.40.0 (Python), and @aws-sdk/credential-provider-ini 3.883.0 with
# @smithy/shared-ini-file-loader 4.0.5 (JavaScript).
#
# What one would expect: the AWS SDKs share their files and variables, so that two of them, on one machine with one
# environment, sign with the same key. The guide names AWS_PROFILE as the variable for the profile, and says that
# the credentials file wins over the configuration file where both give credentials for a profile.
#
# What happens: they sign with different keys. botocore looks at AWS_DEFAULT_PROFILE first and at AWS_PROFILE second:
# with both set it takes the former, while JavaScript knows AWS_PROFILE only. So `AWS_PROFILE=ci` in front of a
# command does nothing for botocore where a login script has exported AWS_DEFAULT_PROFILE. An AWS_DEFAULT_PROFILE
# that is set and empty makes botocore look for a profile without a name and fail. When a profile is spread over
# both files, botocore takes all from the credentials file or nothing; JavaScript merges single keys, and sends
# the new key of the credentials file with the session token of the configuration file, which do not belong
# together.
#
# Why it matters: a client of S3 binary caches that wants to "do as AWS does" must say which of them. The one order
# uploads with the wrong account's key, and the other merge fails with an error about a token that the user does
# not see in the file that he looks at.
#
# Source of the expectation: the AWS SDKs and Tools Reference Guide, chapters on shared config and credentials files
# and on the setting AWS_PROFILE. The order is in botocore/configprovider.py (BOTOCORE_DEFAUT_SESSION_VARIABLES)
# and the files are read one by one in botocore/credentials.py; the merge is parseKnownFiles of the loader.
set -u
export LC_ALL=C
T=$(mktemp -d) || exit 2
trap 'rm -rf "$T"' EXIT
trap 'exit 130' HUP INT TERM
cd "$T" || exit 2
for t in python3 node npm; do command -v $t >/dev/null || { echo "not set up: no $t"; exit 2; }; done

python3 -m pip install -q --disable-pip-version-check --target "$T/py" boto3==1.40.0 botocore==1.40.0 >log 2>&1 ||
  { cat log; echo "not set up: no boto3"; exit 2; }
cat >package.json <<'J'
{ "private": true, "type": "module",
  "dependencies": { "@aws-sdk/credential-provider-ini": "3.883.0",
                    "@smithy/shared-ini-file-loader": "4.0.5" },
  "overrides": { "@smithy/shared-ini-file-loader": "4.0.5" } }
J
npm install --silent --no-audit --no-fund --ignore-scripts >log 2>&1 || { cat log; echo "not set up: no SDK for JavaScript"; exit 2; }

cat >ask.py <<'P'
import boto3
try:
    c = boto3.Session().get_credentials()
    print(c.access_key if c else 'none', c.token if c and c.token else 'no token')
except Exception as e:
    print(type(e).__name__)
P
cat >ask.js <<'J'
import { fromIni } from '@aws-sdk/credential-provider-ini';
try {
  const c = await fromIni()();
  console.log(c.accessKeyId, c.sessionToken ?? 'no token');
} catch (e) {
  console.log(e.name);
}
J
mkdir -p home/.aws
cat >home/.aws/config <<'C'
[profile one]
aws_access_key_id = KEY-ONE
aws_secret_access_key = a

[profile two]
aws_access_key_id = KEY-TWO
aws_secret_access_key = b

[profile spread]
aws_access_key_id = KEY-OLD
aws_secret_access_key = c
aws_session_token = TOKEN-OLD
C
cat >home/.aws/credentials <<'C'
[spread]
aws_access_key_id = KEY-NEW
aws_secret_access_key = d
C
unset "${!AWS_@}"
export HOME=$T/home AWS_EC2_METADATA_DISABLED=true PYTHONPATH=$T/py

BAD=0
is() { # WHAT WANTED SEEN
  if [ "$2" = "$3" ]; then printf '  as before: %s: %s\n' "$1" "$3"
  else printf '  CHANGED: %s\n    was:    %s\n    is now: %s\n' "$1" "$2" "$3"; BAD=1; fi
}
ask() { # BOTO3 JAVASCRIPT VARIABLE...
  echo "== ${*:3}"
  is "boto3     " "$1" "$(env "${@:3}" python3 ask.py)"
  is "JavaScript" "$2" "$(env "${@:3}" node ask.js)"
}
is "versions" "1.40.0 1.40.0" "$(python3 -c 'import boto3, botocore; print(boto3.__version__, botocore.__version__)')"
is "versions" "3.883.0 4.0.5" "$(node -p '["@aws-sdk/credential-provider-ini", "@smithy/shared-ini-file-loader"].map(p =>
  JSON.parse(require("fs").readFileSync("node_modules/" + p + "/package.json")).version).join(" ")')"
ask 'KEY-ONE no token' 'KEY-ONE no token' AWS_PROFILE=one
ask 'KEY-TWO no token' 'KEY-ONE no token' AWS_PROFILE=one AWS_DEFAULT_PROFILE=two
ask 'KEY-TWO no token' CredentialsProviderError AWS_DEFAULT_PROFILE=two
ask ProfileNotFound 'KEY-ONE no token' AWS_PROFILE=one AWS_DEFAULT_PROFILE=
ask 'KEY-NEW no token' 'KEY-NEW TOKEN-OLD' AWS_PROFILE=spread
if [ "$BAD" = 0 ]; then echo "still so"; else echo "something has changed"; fi
exit "$BAD"
