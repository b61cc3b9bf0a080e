package kernel

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"replug/tests/lab"
)

// onArm64 are the tests of the agent in guests that need nothing but a kernel and
// busybox: the agent whole, on a veth with a host at its other end. What stays out
// needs programs that the small machine doesn't have (dhclient, dbus-daemon, mke2fs).
var onArm64 = []string{
	"TestPartialThenFinal", "TestLinkFlapMovesToNewNetwork", "TestLinkEventEndsThePoll", "TestSilenceRenewsTheLease",
	"TestRefusedRenewalStartsAnew", "TestRoutes", "TestRestartAndOlderEpoch", "TestImageOfAnotherMachine", "TestReportIsRepeated",
	"TestApply", "TestNewUser", "TestKeysFollowNoLink", "TestPassword", "TestRunOnce", "TestDNS",
	"TestDocumentComesWhileTheNICIsDown", "TestMovedRenewsWithoutACut", "TestOldAddressIsRemoved", "TestUdhcpcIsTold",
	"TestFastFlaps", "TestNICIsReplaced", "TestBothFamilies", "TestIPv6Alone",
}

// Issue 4, point 6: the agent runs on arm64 as it does here, on Debian's kernel
// for that processor.
func TestAgentOnArm64(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience(t))
	defer cancel()
	dir := t.TempDir()
	program := filepath.Join(dir, "guest.test")
	t.Setenv("GOARCH", "arm64")
	build(t, "test", "-c", "-o", program, "replug/dataplane/guest")
	start := time.Now()
	v, err := lab.Trial{
		Arch:    "arm64",
		Modules: []string{"veth", "tun", "af_packet"},
		Files:   map[string]string{"guest.test": program},
		Command: "./guest.test -test.v -test.timeout 0 -test.run '^(" + strings.Join(onArm64, "|") + ")$'",
	}.Run(ctx)
	if err != nil || v.Code != 0 {
		t.Fatalf("exit code %d, %v\n%s", v.Code, err, v.Output)
	}
	t.Logf("Linux %s, %s", v.Kernel, time.Since(start).Round(time.Second))
	judge(t, v.Output, onArm64)
}
