#!/usr/bin/env bash
# Install Debian's Chromium for the tests that look at the report, where that needs no password; never an error.
set -u
command -v chromium >/dev/null && command -v chromedriver >/dev/null && exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "chromium and chromedriver are missing: the browser tests will be skipped."
  exit 0
fi
echo "Installing chromium for the browser tests."
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; } \
  >/dev/null 2>&1 </dev/null; then
  echo "chromium could not be installed: the browser tests will be skipped."
fi
