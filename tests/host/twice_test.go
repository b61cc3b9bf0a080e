package host_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"replug/directory/vnet"
	"replug/tests/lab"
)

// A saved state that is gone back to twice, on two hosts: until each of them is told
// that it slept it draws the very numbers of the other one, and from then on others.
func TestRandomNumbersOfTwins(t *testing.T) {
	s := newStocks(t, "hosttwins", "twins", 2)
	args := append(s.args(1), s.agentDisk()...)
	s.agent(1, args...)
	cloud, ours := s.pool(23, vnet.PersonalityCloudInit), s.pool(24, vnet.PersonalityAgent)
	s.started(ours)
	s.in(ours, "cat /dev/vdb >/run/replug-guest && chmod 755 /run/replug-guest && systemd-run -q --unit=replug-guest /run/replug-guest --dhcp own")
	both := []vnet.Intent{cloud, ours}
	for _, in := range both {
		s.pooled(in)
		s.sleep(in)
		s.copyTo("h2", in)
	}
	first := s.twins(both, 8)
	s.agent(2, append(s.args(2), args[len(s.args(1)):]...)...)
	for i := range both {
		both[i].Host, both[i].PA.Addr = "h2", addr(fmt.Sprintf("100.64.2.%d", both[i].ID))
	}
	second := s.twins(both, 9)
	for i, in := range both {
		a, b := first[i], second[i]
		t.Logf("%s: of %d numbers the twins share %d before they are told and %d after", in.Machine.Personality, len(a.told), shared(a.asleep, b.asleep), shared(a.told, b.told))
		if shared(a.asleep, b.asleep) == 0 {
			t.Errorf("%s: the twins drew nothing that both did before they were told: nothing was tried", in.Machine.Personality)
		}
		if n := shared(a.told, b.told); n != 0 {
			t.Errorf("%s: told that they slept, the twins draw %d of %d numbers that both do", in.Machine.Personality, n, len(a.told))
		}
		if shared(a.told, b.asleep) != 0 || shared(b.told, a.asleep) != 0 {
			t.Errorf("%s: told that it slept, a twin draws what the other one drew before", in.Machine.Personality)
		}
	}
}

// started waits until the VM's process is there.
func (s *stock) started(in vnet.Intent) {
	s.t.Helper()
	if err := lab.Until(s.ctx, in.VM+" to start", func() error { _, err := os.Stat(join(s.files(in), "exec.sock")); return err }); err != nil {
		s.t.Fatal(err)
	}
}

// agentDisk is our agent for guests whose image is without, as a disk.
func (s *stock) agentDisk() []string {
	s.t.Helper()
	b, err := os.ReadFile(guestAgent)
	if err != nil {
		s.t.Fatal(err)
	}
	disk := join(s.t.TempDir(), "agent")
	if err := os.WriteFile(disk, append(b, make([]byte, 4096-len(b)%4096)...), 0o644); err != nil {
		s.t.Fatal(err)
	}
	return []string{"--qemu-arg=-drive", "--qemu-arg=id=agent,if=none,format=raw,readonly=on,file=" + disk,
		"--qemu-arg=-device", "--qemu-arg=virtio-blk-pci,drive=agent"}
}

// renews has the kernel renew its random numbers, and remembers when.
const renews = `python3 -c 'import fcntl; fcntl.ioctl(open("/dev/urandom", "wb"), 0x5207)'; cut -d. -f1 /proc/uptime >/run/renewed`

// sleep has the VM saved, just after its kernel has renewed its random numbers. One that
// is up for two minutes leaves them alone for the next minute (drivers/char/random.c,
// CRNG_RESEED_INTERVAL): what is drawn then is settled.
func (s *stock) sleep(in vnet.Intent) {
	s.t.Helper()
	s.in(in, "until [ $(cut -d. -f1 /proc/uptime) -ge 120 ]; do sleep 1; done; "+renews)
	in.Current.Hold = vnet.HoldSnapshot
	s.dir.put(in)
	s.saved(in)
}

// copyTo gives another host what the first one has of a VM that sleeps.
func (s *stock) copyTo(host string, in vnet.Intent) {
	s.t.Helper()
	from := s.files(in)
	in.Host = host
	to := s.files(in)
	if out, err := exec.CommandContext(s.ctx, "sh", "-c", fmt.Sprintf("mkdir -p %[2]s && cp -a --sparse=always %[1]s/. %[2]s", from, to)).CombinedOutput(); err != nil {
		s.t.Fatalf("copy %s: %v: %s", from, err, out)
	}
}

// A twin is what a guest drew.
type twin struct{ asleep, told []string }

// twins makes VMs go on and be somebody's, at that epoch, and has them draw numbers
// before they are told that they slept, and after: cloud-init's by the first thing that
// its owner has it do.
func (s *stock) twins(all []vnet.Intent, epoch uint64) []twin {
	s.t.Helper()
	drawn := make([]twin, len(all))
	for i, in := range all {
		in.Current.Hold = vnet.HoldSnapshot
		p := owned(int(in.ID))
		p.Epoch = vnet.NewEpoch(3, epoch)
		boot, _ := json.Marshal(map[string]any{"bootcmd": []string{draws + " >/run/drawn.new; mv /run/drawn.new /run/drawn"}})
		p.Document.UserData = append([]byte("#cloud-config\n"), boot...)
		prepare, change := to(in, p, vnet.TriggerBounce)
		s.dir.put(prepare)
		s.dir.await(s.ctx, s.t, in.Port, p.Epoch, vnet.StatusPrepared, vnet.StatusRefused)
		drawn[i].asleep = s.drawn(in, draws)
		s.dir.put(change)
		s.dir.await(s.ctx, s.t, in.Port, p.Epoch, vnet.StatusConfirmed)
		script := draws
		if in.Machine.Personality.CloudInit() { // it reports before it sees to its owner's wishes
			script = waits("test -e /run/drawn") + "; cat /run/drawn"
		}
		drawn[i].told = s.drawn(in, script)
	}
	return drawn
}

// draws takes some of the kernel's random numbers by each of the two ways, and says how
// many seconds after they were renewed that was.
const draws = `python3 -c 'import os
f = open("/dev/urandom", "rb", 0)
for _ in range(100): print(os.getrandom(16).hex(), f.read(16).hex())
print(float(open("/proc/uptime").read().split()[0]) - int(open("/run/renewed").read()))'`

func (s *stock) drawn(in vnet.Intent, script string) []string {
	s.t.Helper()
	all := strings.Fields(s.in(in, script))
	s.t.Logf("%s: %d numbers, %s s after they were renewed", in.VM, len(all)-1, all[len(all)-1])
	return all[:len(all)-1]
}

// shared counts what is in both.
func shared(a, b []string) (n int) {
	for _, x := range a {
		if slices.Contains(b, x) {
			n++
		}
	}
	return n
}
