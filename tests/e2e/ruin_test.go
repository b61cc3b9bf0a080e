package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "replug/control/controlpb"
	"replug/directory/pki"
	"replug/tests/lab"
)

// A second agent with a host's name is refused, says why, and harms neither the
// first one nor what it carries.
func TestTwoAgentsWithOneName(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web := w.guest(ctx, t, 1, "red", true)
	lossless := w.bystanders(ctx, t)
	if err := w.Agent(2).Stop(ctx); err != nil {
		t.Fatal(err)
	}
	h2, f := w.Lab.Host(2), pki.DirFiles(w.PKI, "h1")
	impostor, err := h2.Start(ctx, lab.Cmd{Name: "impostor", Args: []string{filepath.Join(bin, "replug-host"), "--name", "h1",
		"--server", w.Endpoint(), "--uplink", "up0", "--pa-prefix", w.Lab.PAPrefix(2).String(),
		"--state-dir", filepath.Join(h2.Dir(), "impostor"), "--bpffs", h2.BPF(), "--ca", f.CA, "--cert", f.Cert, "--key", f.Key}})
	if err != nil {
		t.Fatal(err)
	}
	for _, words := range []string{"h1", "attached already", "two agents with one name"} {
		if err := impostor.Says(ctx, words); err != nil {
			t.Error(err)
		}
	}
	if impostor.Alive() {
		if err := impostor.Stop(ctx); err != nil {
			t.Error(err)
		}
	}
	if err := w.StartHost(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if err := w.Connected(ctx); err != nil {
		t.Fatal(err)
	}
	ip := w.ip()
	web.also(ctx, t, ip)
	web.move(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: ip, Trigger: "none"})
	reaches(ctx, t, w.peer(ctx, t, "blue").Node, ip)
	lossless()
}

// A backup restored into a new directory: the era has grown, hosts take all of it
// anew, a port that was made after the backup is left as it is and shown, others
// lose no frame, and swaps work (invariants 5, 6, 7).
func TestRestore(t *testing.T) {
	start := shared.within(t)
	w, err := newWorld(start, lab.Config{Name: fmt.Sprint("ruin", os.Getpid()%100000)}, "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.down(); err != nil {
			t.Error(err)
		}
	})
	ctx := w.within(t)
	web := w.guest(ctx, t, 1, "red", true)
	w.peer(ctx, t, "blue")
	lossless := w.bystanders(ctx, t)
	admin := pb.NewAdminClient(w.conn)
	before, err := admin.GetCluster(ctx, &pb.GetClusterRequest{})
	if err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(w.Lab.Server().Dir(), "data")
	backup := filepath.Join(w.Lab.Dir(), "monday.backup")
	if _, said, code := w.cli(ctx, t, "backup", backup); code != 0 {
		t.Fatal(said)
	}
	late := w.guest(ctx, t, 1, "red", true) // the backup doesn't know of it
	if err := w.StopServer(ctx); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(data, data+".lost"); err != nil {
		t.Fatal(err)
	}
	if _, said, code := w.cli(ctx, t, "restore", backup, "--data-dir", data); code != 0 {
		t.Fatal(said)
	}
	if err := w.StartServer(ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.Connected(ctx); err != nil {
		t.Fatal(err)
	}
	after, err := admin.GetCluster(ctx, &pb.GetClusterRequest{})
	if err != nil || after.Id != before.Id || after.Era != before.Era+1 || after.Revision <= before.Revision {
		t.Errorf("the restored cluster is %v (%v), it was %v; want the next era and a higher revision", after, err, before)
	}
	// Its mapping is forgotten with the rest; the port itself is left to a person.
	err = lab.Until(ctx, "the port that the backup doesn't know to be shown", func() error {
		if n := metrics(ctx, t, w.Lab.Host(1), 9417)["replug_orphan_ports"]; n != 1 {
			return fmt.Errorf("host 1 shows %v orphans, want 1", n)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if err := w.Agent(1).Says(ctx, "ports=[acme."+late.port+"]"); err != nil {
		t.Error(err)
	}
	ip := w.ip()
	web.also(ctx, t, ip)
	s := web.move(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: ip, Trigger: "none"})
	if want := fmt.Sprint(after.Era, "."); !strings.HasPrefix(s.After.Epoch, want) {
		t.Errorf("the swap's epoch is %s, want one of era %d", s.After.Epoch, after.Era)
	}
	reaches(ctx, t, w.peer(ctx, t, "blue").Node, ip)
	lossless()
}
