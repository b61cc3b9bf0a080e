package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	pb "replug/control/controlpb"
	"replug/tests/lab"
)

// A capture of the real datapath shows a frame at each of its points, and a
// refused one with its reason, in tshark.
func TestCapture(t *testing.T) {
	w := shared
	ctx := w.within(t, "no_rule_in")
	r := w.ruled(ctx, t, "cyan")
	file := filepath.Join(t.TempDir(), "far.pcapng")
	p := w.looking(ctx, t, "capture "+r.far.port+" --tenant "+tenant+" --count 12 > "+file)
	if err := lab.Until(ctx, "the capture begins", func() error {
		if i, err := os.Stat(file); err != nil || i.Size() == 0 {
			return errors.New("nothing is in the file")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for p.Alive() && ctx.Err() == nil {
		_ = dial(ctx, r.web.Node, r.far.ip, 80) // first: two frames, while a handshake may be more than twelve
		_ = dial(ctx, r.web.Node, r.far.ip, 443)
	}
	out, err := exec.CommandContext(ctx, "tshark", "-r", file, "-n", "-T", "fields", "-e", "frame.interface_name", "-e", "frame.comment", "-e", "vxlan.vni", "-e", "tcp.dstport").Output()
	if err != nil {
		t.Fatalf("tshark: %v", err)
	}
	for _, want := range []string{
		fmt.Sprintf("from_wire\t\t%d\t443", r.vni), "to_vm\t\t\t443", "from_vm\t\t\t", fmt.Sprintf("to_wire\t\t%d\t", r.vni),
		fmt.Sprintf("drop\tno_rule_in: the VM has rules, and none allows this in\t%d\t80", r.vni),
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("tshark shows nothing of %q:\n%s", want, out)
		}
	}
	if n := strings.Count(string(out), "\n"); n != 12 {
		t.Errorf("%d frames, want 12", n)
	}
	if m := metrics(ctx, t, w.Lab.Host(2), 9417); m[`replug_drops_total{reason="no_rule_in"}`] == 0 {
		t.Error("the drop is not counted")
	}
	r.sameHost(ctx, t)
}

// sameHost captures a frame that its receiver's rules refuse, by the receiver's
// name: that its sender is on the same host is no difference.
func (r *ruled) sameHost(ctx context.Context, t *testing.T) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "near.pcapng")
	p := r.looking(ctx, t, "capture "+r.near.port+" --points drop --tenant "+tenant+" --count 1 > "+file)
	for p.Alive() && ctx.Err() == nil {
		_ = dial(ctx, r.web.Node, r.near.ip, 80)
	}
	out, err := exec.CommandContext(ctx, "tshark", "-r", file, "-n", "-T", "fields", "-e", "frame.comment", "-e", "ip.dst", "-e", "tcp.dstport").Output()
	want := "no_rule_in: the VM has rules, and none allows this in\t" + r.near.ip + "\t80\n"
	if err != nil || string(out) != want {
		t.Errorf("refused on the same host: %v, tshark shows %q, want %q", err, out, want)
	}
}

// A capture goes on when its port moves to another network, and ends with whoever
// looked: also when the agent was killed meanwhile.
func TestCaptureOutlastsFlip(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web := w.guest(ctx, t, 1, "red", true)
	w.peer(ctx, t, "blue")
	ip := w.ip()
	web.also(ctx, t, ip)
	file := filepath.Join(t.TempDir(), "web.pcapng")
	p := w.looking(ctx, t, "capture "+web.port+" --points from_vm --tenant "+tenant+" > "+file)
	full := func() error {
		if i, err := os.Stat(file); err != nil || i.Size() == 0 {
			return errors.New("nothing is in the file")
		}
		return nil
	}
	if err := lab.Until(ctx, "the capture begins", full); err != nil {
		t.Fatal(err)
	}
	web.move(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: ip, Trigger: "none"})
	err := lab.Until(ctx, "frames of the new network", func() error {
		reaches(ctx, t, w.peer(ctx, t, "blue").Node, ip)
		out, _ := exec.CommandContext(ctx, "tshark", "-r", file, "-n", "-Y", "icmp && ip.src == "+ip).Output()
		if len(out) == 0 {
			return errors.New("none are in the file")
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := p.Stop(ctx); err != nil {
		t.Errorf("an interrupted capture: %v", err)
	}

	p = w.looking(ctx, t, "drops --follow")
	watched := func(want uint32) {
		t.Helper()
		if err := lab.Until(ctx, fmt.Sprint("drop_watch is ", want), func() error {
			m, err := ebpf.LoadPinnedMap(filepath.Join(w.Lab.Host(1).BPF(), "replug", "maps", "drop_watch"), nil)
			if err != nil {
				return err
			}
			defer m.Close()
			var v uint32
			if err := m.Lookup(uint32(0), &v); err != nil || v != want {
				return fmt.Errorf("it is %d, %v", v, err)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	watched(1)
	if err := w.KillHost(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(ctx); err != nil {
		t.Errorf("interrupted drops: %v", err)
	}
	watched(1) // the dead can't switch it off
	if err := errors.Join(w.StartHost(ctx, 1), w.Connected(ctx)); err != nil {
		t.Fatal(err)
	}
	watched(0)
}

// looking starts replug as the operator, in the background.
func (w *world) looking(ctx context.Context, t *testing.T, command string) *lab.Proc {
	t.Helper()
	p, err := w.Lab.Server().Start(ctx, lab.Cmd{Name: "looking", Args: []string{"sh", "-c", fmt.Sprintf("exec %s --server %s --pki %s --as operator %s",
		filepath.Join(bin, "replug"), w.Endpoint(), w.PKI, command)}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// What is refused, what is live, and what the flow log keeps of it.
func TestDropsAndFlows(t *testing.T) {
	w := shared
	ctx := w.within(t, "no_rule_in")
	r := w.ruled(ctx, t, "navy")
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			_ = dial(ctx, r.web.Node, r.far.ip, 80)
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	out, said, code := w.cli(ctx, t, "drops", "--tenant", tenant, "--every", "2s", r.far.port)
	close(stop)
	<-done
	want := fmt.Sprintf("tcp %s:", r.web.ip)
	if code != 0 || !strings.Contains(out, "no_rule_in") || !strings.Contains(out, want) || !strings.Contains(out, r.far.ip+":80") || !strings.Contains(out, tenant+"."+r.far.port) {
		t.Errorf("drops: exit %d, %s\n%s", code, said, out)
	}
	if err := r.hold(ctx, t); err != nil {
		t.Fatal(err)
	}
	w.detach(t, r.far.port)
	file := filepath.Join(w.Lab.Host(2).Dir(), "state", "flows", fmt.Sprint(r.vni)+".jsonl")
	var missing []string
	err := lab.Until(ctx, "the flow log", func() error {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if missing = logged(t, b, r); len(missing) > 0 {
			return fmt.Errorf("no record of %q in\n%s", missing, b)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if m := metrics(ctx, t, w.Lab.Host(2), 9417); m[`replug_flow_records_lost_total{reason="ring"}`] != 0 || m["replug_flow_records_total"] == 0 {
		t.Errorf("flow records: %v written, %v lost", m["replug_flow_records_total"], m[`replug_flow_records_lost_total{reason="ring"}`])
	}
}

// hold keeps a connection open while its flow is listed.
func (r *ruled) hold(ctx context.Context, t *testing.T) error {
	var c net.Conn
	err := r.web.Do(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, "tcp4", r.far.ip+":443")
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	out, said, code := r.cli(ctx, t, "flows", "--tenant", tenant, r.far.port)
	row := ""
	for s := bufio.NewScanner(strings.NewReader(out)); s.Scan(); {
		if strings.Contains(s.Text(), c.LocalAddr().String()) {
			row = s.Text()
		}
	}
	if f := strings.Fields(row); code != 0 || len(f) != 9 || f[0] != "tcp" || f[1] != r.far.ip+":443" || f[2] != "in" {
		t.Errorf("flows: exit %d, %s\n%s\nthe connection's: %q", code, said, out, row)
	}
	return nil
}

// logged returns what the log lacks of: a flow that began and ended by a rule, and
// one that none allowed.
func logged(t *testing.T, b []byte, r *ruled) (missing []string) {
	want := map[string]bool{"start server/https allow": true, "end server/https allow": true, "denied no rule matched deny no_rule_in": true}
	for line := range bytes.Lines(b) {
		var rec struct {
			Event, Tenant, Network, Port, Direction, Protocol, Local, Remote, Verdict, Rule, Reason string
			VNI                                                                                     uint32
			Packets, Bytes                                                                          uint64
		}
		if err := json.Unmarshal(line, &rec); err != nil {
			t.Fatalf("flow log: %v in %s", err, line)
		}
		if rec.Tenant != tenant || rec.VNI != r.vni || rec.Port != tenant+"."+r.far.port {
			t.Errorf("a record of another port: %s", line)
		}
		if rec.Event == "end" && (rec.Packets == 0 || rec.Bytes == 0) {
			continue
		}
		delete(want, strings.TrimSpace(strings.Join([]string{rec.Event, rec.Rule, rec.Verdict, rec.Reason}, " ")))
	}
	for what := range want {
		missing = append(missing, what)
	}
	slices.Sort(missing)
	return missing
}
