package dataplane

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/prometheus/client_golang/prometheus"

	"replug/directory/vnet"
)

// A guest that says ever something else costs the host a few lines, writes and statuses,
// and then one a minute, the newest. What it says once all is quiet comes at once.
func TestReportsWithoutEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, log := newWorld(t), &bytes.Buffer{}
		w.said = log
		p, in := w.reporting()
		p.says(t, in, "")
		settle(time.Millisecond)
		w.acts, w.statuses = nil, nil
		log.Reset()
		for n := range 600 {
			p.says(t, in, fmt.Sprintf("%d %s", n, strings.Repeat("a", 2000)))
			settle(200 * time.Millisecond)
		}
		lines := strings.Count(log.String(), "guest reports a failure")
		records := len(slices.DeleteFunc(slices.Clone(w.acts), func(a string) bool { return !strings.HasPrefix(a, "record ") }))
		if most := reportBurst + 2; lines > most || records > most || len(w.statuses) > most || lines == 0 {
			t.Errorf("600 reports in two minutes cost %d lines, %d records, %d statuses; want at most %d", lines, records, len(w.statuses), most)
		}
		if n := log.Len() / max(lines, 1); n > 1000 {
			t.Errorf("a line of the log has %d bytes", n)
		}
		settle(reportEvery)
		if s := w.last(in.Current.Epoch); !strings.HasPrefix(s.Guest.Error, "599 ") || len(s.Guest.Error) != 2004 {
			t.Errorf("a minute after the last of them the leader knows %.9q", s.Guest.Error)
		}
		told := len(w.statuses)
		p.says(t, in, w.last(in.Current.Epoch).Guest.Error)
		settle(reportEvery)
		if len(w.statuses) != told {
			t.Error("what is known already was told again")
		}
		settle(10 * reportEvery) // all quiet
		p.says(t, in, "disk 1: no space left")
		settle(time.Millisecond)
		if s := w.last(in.Current.Epoch); s.Guest.Error != "disk 1: no space left" {
			t.Errorf("after a quiet time the leader knows %.9q", s.Guest.Error)
		}
	})
}

// The first report on a document is not kept waiting, nor is the first success, however
// much the guest has complained; and what goes wrong after it waits no longer for that.
func TestSuccessIsNotKeptWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p, in := w.reporting()
		knows := func(when time.Duration, what string, phase vnet.StatusPhase, ok bool, wrong string) {
			t.Helper()
			settle(when)
			s := w.last(in.Current.Epoch)
			if s.Guest == nil || s.Phase != phase || s.Guest.OK != ok || s.Guest.Error != wrong {
				t.Errorf("%s is kept waiting: %+v, guest %+v", what, s, s.Guest)
			}
		}
		for n := range 3 * reportBurst {
			r := vnet.GuestReport{Epoch: in.Current.Epoch, Kind: vnet.ReportFinal, Error: fmt.Sprint("try ", n)}
			must(t, p.offer(t.Context(), r))
			if n < reportBurst {
				knows(time.Millisecond, "one of a few reports", vnet.StatusPublished, false, r.Error)
			}
		}
		p.says(t, in, "")
		knows(time.Millisecond, "its success", vnet.StatusConfirmed, true, "")
		p.says(t, in, "disk 1: no space left")
		knows(reportEvery, "what went wrong a minute ago", vnet.StatusConfirmed, true, "disk 1: no space left")
		in = prepared(in)
		w.agent.set(in)
		settle(time.Second)
		in = switched(in)
		w.agent.set(in)
		settle(time.Second)
		p.says(t, in, "")
		knows(time.Millisecond, "its report on the next document", vnet.StatusConfirmed, true, "")
	})
}

// What waits for its minute when the agent ends is not lost: the guest was told that
// it is on record.
func TestReportWaitsOverARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p, in := w.reporting()
		for n := range 2 * reportBurst {
			p.says(t, in, fmt.Sprint("try ", n))
		}
		settle(time.Millisecond)
		last := fmt.Sprint("try ", 2*reportBurst-1)
		if s := w.last(in.Current.Epoch); s.Guest.Error == last {
			t.Fatal("nothing waits")
		}
		w.begin().hears(in)
		if s := w.last(in.Current.Epoch); s.Guest.Error != last {
			t.Errorf("after a restart the leader knows %q, want %q", s.Guest.Error, last)
		}
	})
}

// What a guest can make the host say as often as it likes is said once a minute.
func TestGuestDoesNotFillTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, in, log := newWorld(t), intent(), &bytes.Buffer{}
		in.Machine = machine(vnet.PowerOn)
		in.Machine.Personality = vnet.PersonalityCloudInit
		w.guestAt(in, "10.17.34.51").reports = false
		w.running["vm-23"], w.said = true, log
		ps := w.begin()
		ps.hears(in)
		g := &guests{ports: ps, metrics: NewMetrics(prometheus.NewRegistry()), mtu: 1462, log: slog.New(slog.DiscardHandler)}
		decline := dhcpv4Decline(t, in)
		annoy := func() {
			for n := range 100 {
				g.take(trapped{in.ID, in.Current.Epoch, saidDHCP, decline})
				must(t, ps.agentReport(t.Context(), in.ID, vnet.GuestReport{Error: fmt.Sprint(n, strings.Repeat("b", 7000))}))
			}
		}
		for minute := 1; minute <= 2; minute++ {
			annoy()
			for _, line := range []string{"guest declines its address", "agent beside cloud-init reports a failure"} {
				if n := strings.Count(log.String(), line); n != minute {
					t.Errorf("%q is said %d times in minute %d", line, n, minute)
				}
			}
			settle(time.Minute)
		}
		if n := log.Len(); n > 5000 {
			t.Errorf("the log has %d bytes", n)
		}
	})
}

// dhcpv4Decline is what a client sends that has heard somebody else with its address.
func dhcpv4Decline(t *testing.T, in vnet.Intent) []byte {
	t.Helper()
	m, err := dhcpv4.New(dhcpv4.WithHwAddr(in.MAC[:]), dhcpv4.WithMessageType(dhcpv4.MessageTypeDecline),
		dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(in.Current.Addrs[0].CA.AsSlice())))
	must(t, err)
	msg := m.ToBytes()
	f := slices.Concat(bytes.Repeat([]byte{0xff}, 6), in.MAC[:], []byte{8, 0, 0x45, 0})
	f = binary.BigEndian.AppendUint16(f, uint16(28+len(msg)))
	f = append(f, 0, 0, 0, 0, 64, 17, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255)
	var sum uint32
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(f[i:]))
	}
	binary.BigEndian.PutUint16(f[24:], ^uint16(sum%0xffff))
	f = binary.BigEndian.AppendUint16(append(f, 0, 68, 0, 67), uint16(8+len(msg)))
	return append(append(f, 0, 0), msg...)
}

// reporting is a port whose guest says nothing by itself.
func (w *world) reporting() (*port, vnet.Intent) {
	in := intent()
	w.guestAt(in, "10.17.34.51").reports = false
	return w.begin().hears(in), in
}

// hears waits until the port listens to reports.
func (ps *ports) hears(in vnet.Intent) *port {
	ps.set(in)
	settle(time.Second)
	return ps.get(in.ID)
}

// says reports that the settings are applied, and what went wrong since.
func (p *port) says(t *testing.T, in vnet.Intent, wrong string) {
	t.Helper()
	must(t, p.offer(t.Context(), vnet.GuestReport{
		Epoch: in.Current.Epoch, Kind: vnet.ReportFinal, OK: true, Error: wrong, BootID: "b-17", At: time.Now()}))
}
