package host_test

import (
	"strings"
	"testing"
	"time"

	"replug/directory/vnet"
)

// A stock Debian image goes through pool, claim and swap, without a reboot and with
// nothing of ours in it. Each NIC that it may have is tried. An emulated guest on a busy
// machine may look at its link only when that is up again, and be sent back to DHCP.
func TestCloudInit(t *testing.T) {
	for _, c := range []struct {
		personality vnet.Personality
		cut         time.Duration
		ladder      []string
	}{
		{vnet.PersonalityCloudInit, 200 * time.Millisecond, []string{"bounce 200ms", "renew", "bounce 1.2s"}},
		{vnet.PersonalityCloudInitSavable, 20 * time.Millisecond, []string{"replug 20ms", "renew", "replug 1.2s"}},
	} {
		t.Run(string(c.personality), func(t *testing.T) {
			s := newStock(t, "hostdeb", string(c.personality))
			in := s.pool(23, c.personality)
			s.pooled(in)
			boot := s.in(in, bootID)
			in, st := s.claim(in, nil)
			s.walked(st, c.ladder...)
			if cut := dark(st); cut < c.cut {
				t.Errorf("its first cut took %s, want %s at least: %s", cut, c.cut, timeline(st))
			}
			s.applied(in)
			change := s.move(in, place("red", red, "10.17.34.77", 9))
			if got := s.in(change, addresses); got != "10.17.34.77/24" {
				t.Errorf("after the swap it has %q", got)
			}
			if now := s.in(change, bootID); now != boot {
				t.Errorf("boot id was %s, is %s", boot, now)
			}
		})
	}
}

// The same for the stock image, whose clock and random numbers cloud-init renews.
func TestCloudInitSaved(t *testing.T) {
	s := newStock(t, "hostdebsa", "saved")
	in := s.pool(23, vnet.PersonalityCloudInit)
	s.pooled(in)
	const itself = "cat /sys/class/net/e*/address /sys/class/dmi/id/product_uuid"
	boot, was := s.in(in, bootID), s.in(in, itself)
	in.Current.Hold = vnet.HoldSnapshot
	s.dir.put(in)
	s.saved(in)
	time.Sleep(slept) // what is looked at is the time that goes by
	in, st := s.claim(in, nil)
	if is := s.in(in, itself); is != was || len(strings.Fields(is)) != 2 {
		t.Errorf("its MAC and UUID were %q and are %q", was, is)
	}
	if st.Rung == "agent" {
		t.Error("it was moved by an agent: there is none of ours in it")
	}
	s.applied(in)
	if now := s.in(in, bootID); now != boot {
		t.Errorf("boot id was %s, is %s", boot, now)
	}
	s.awake(in)
	if got := s.in(in, "grep -c 'random numbers are renewed' /var/log/cloud-init-output.log"); got != "1" {
		t.Errorf("its random numbers were renewed %s times", got)
	}
}

// A VM that reboots while it waits, and one that does in mid-swap, become their
// owners' all the same.
func TestCloudInitReboots(t *testing.T) {
	s := newStock(t, "hostdebre", "reboots")
	waiting, moving := s.pool(24, vnet.PersonalityCloudInit), s.pool(25, vnet.PersonalityCloudInit)
	s.pooled(waiting)
	s.pooled(moving)
	was := s.in(waiting, bootID)
	s.reboot(waiting)
	s.booted(waiting, was)
	s.in(waiting, waits("grep -q reprovisiondata /var/log/cloud-init.log"))
	boot := s.in(waiting, bootID)
	waiting, st := s.claim(waiting, nil)
	s.walked(st, "renew", "bounce 200ms", "renew", "bounce 1.2s") // it polls
	s.applied(waiting)
	if now := s.in(waiting, bootID); now != boot {
		t.Errorf("boot id was %s, is %s", boot, now)
	}

	was = s.in(moving, bootID)
	moving, st = s.claim(moving, func() { s.reboot(moving) })
	if st.Rung != "boot" {
		t.Errorf("it was reset on its way, and claimed by %q", st.Rung)
	}
	s.booted(moving, was)
	s.applied(moving)
}
