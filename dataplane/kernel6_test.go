package dataplane

import (
	"os"
	"strings"
	"testing"
	"time"

	"replug/directory/vnet"
)

// redAt and blueAt are places with IPv6 alone.
func redAt(ca string) vnet.Place {
	p := place("red", red, "10.17.34.51", 7)
	p.Addrs, p.MTU = nil, 1400
	dual(&p, ca)
	return p
}

func blueAt(ca string) *vnet.Place {
	p := place("blue", blue, "10.17.34.62", 8)
	p.Addrs, p.MTU = nil, 1333
	dual(&p, ca)
	p.Swap, p.Confirm, p.Trigger = "s-5", vnet.ConfirmLease, vnet.TriggerBounce
	return &p
}

// swap brings the guest from red to blue and returns the status of the proof and
// how long it took from the switch on.
func (c *cable) swap(in vnet.Intent, next *vnet.Place, d time.Duration) (vnet.Status, time.Duration) {
	c.t.Helper()
	in.Next = next
	c.agent.set(in)
	c.reach(next.Epoch, vnet.StatusPrepared, 5*time.Second)
	c.heardFromGuest()
	in = switched(in)
	c.agent.set(in)
	return c.reach(next.Epoch, vnet.StatusLeased, d)
}

// TestKernelRouter: the kernel alone takes router, prefix, MTU and timer from the
// advertisements, and drops the former router and prefix at once.
func TestKernelRouter(t *testing.T) {
	c := newCable(t)
	in := intent()
	in.Current = redAt("fd17:2839:4a5b:6c7d::51")
	c.agent.set(in)
	c.becomes(" | default via "+redRouter+", fd17:2839:4a5b:6c7d::/64", 10*time.Second)
	if got := read(t, "/proc/sys/net/ipv6/conf/eth0/mtu") + read(t, "/proc/sys/net/ipv6/neigh/eth0/retrans_time_ms"); got != "1400 100 " {
		t.Errorf("MTU, retransmission: %s", got)
	}
	in.Next = blueAt("fd28:394a:5b6c:7d8e::62")
	c.agent.set(in)
	c.reach(in.Next.Epoch, vnet.StatusPrepared, 5*time.Second)
	in = switched(in)
	c.agent.set(in)
	c.becomes(" | default via "+blueRouter+", fd28:394a:5b6c:7d8e::/64", 10*time.Second)
	if got := read(t, "/proc/sys/net/ipv6/conf/eth0/mtu"); got != "1333 " {
		t.Errorf("MTU %s", got)
	}
}

// TestKernelSLAAC: a kernel without any client follows by the advertisement. The
// old address is deprecated at once: no connection begins from it any more; and is
// gone once its half hour is over, or at once where the kernel is told to believe
// lifetimes below two hours (RFC 4862, section 5.5.3).
func TestKernelSLAAC(t *testing.T) {
	for _, c := range []struct {
		name, honor, left string
	}{
		{"as it comes", "0", "-fd17:2839:4a5b:6c7d:52:1aff:fe2b:3c4d/64, "},
		{"with ra_honor_pio_life", "1", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cable := newCable(t)
			must(t, os.WriteFile("/proc/sys/net/ipv6/conf/eth0/ra_honor_pio_life", []byte(c.honor), 0))
			in := intent()
			in.Current = redAt("fd17:2839:4a5b:6c7d:52:1aff:fe2b:3c4d")
			in.Current.Addrs[0].SLAAC = true
			cable.agent.set(in)
			cable.reach(in.Current.Epoch, vnet.StatusLeased, 10*time.Second)
			next := blueAt("fd28:394a:5b6c:7d8e:52:1aff:fe2b:3c4d")
			next.Addrs[0].SLAAC = true
			s, took := cable.swap(in, next, 10*time.Second)
			t.Logf("followed on rung %q in %s", s.Rung, took)
			cable.becomes(c.left+"fd28:394a:5b6c:7d8e:52:1aff:fe2b:3c4d/64 | default via "+blueRouter+", fd28:394a:5b6c:7d8e::/64", 5*time.Second)
		})
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return strings.TrimSpace(string(b)) + " "
}
