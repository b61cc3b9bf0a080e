package host_test

import (
	"strings"
	"testing"
	"time"

	"replug/directory/vnet"
)

// A stock Debian image goes through pool, claim and swap, without a reboot and with
// nothing of ours in it. Each NIC that it may have is tried.
func TestCloudInit(t *testing.T) {
	for personality, rung := range map[vnet.Personality]string{vnet.PersonalityCloudInit: "bounce 200ms", vnet.PersonalityCloudInitSavable: "replug 20ms"} {
		t.Run(string(personality), func(t *testing.T) {
			s := newStock(t, "hostdeb", string(personality))
			in := s.pool(23, personality)
			s.pooled(in)
			boot := s.in(in, bootID)
			in, st := s.claim(in, nil)
			if st.Rung != rung {
				t.Errorf("rung %q, want %q", st.Rung, rung)
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
	if st.Rung != "renew" {
		t.Errorf("it polls, and was claimed by %q, not sent back to DHCP", st.Rung)
	}
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
