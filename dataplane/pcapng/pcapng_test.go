package pcapng_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"replug/dataplane/pcapng"
)

// arp is an ARP request, 42 bytes: not a multiple of four.
const arp = "ffffffffffff02521a2b3c4d08060001080006040001" + "02521a2b3c4d0a1122330000000000000a112255"

func file(t *testing.T) string {
	t.Helper()
	frame, err := hex.DecodeString(arp)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w, err := pcapng.NewWriter(&b, "replug", "port web-1 on h7", 256, []pcapng.Interface{
		{Name: "from_vm", Description: "as the VM sent it"}, {Name: "drop", Description: "refused"}})
	at := time.Unix(1764140000, 123456789)
	err = errors.Join(err,
		w.Write(pcapng.Packet{Interface: 0, At: at, Frame: frame, Length: 42, Direction: pcapng.Outbound}),
		w.Write(pcapng.Packet{Interface: 1, At: at.Add(7 * time.Microsecond), Frame: frame[:41], Length: 1514, Comment: "no_mapping: no PA is known"}),
		w.Statistics(0, at.Add(time.Second), 1, 0), w.Statistics(1, at.Add(time.Second), 1, 513))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "a.pcapng")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is missing: make setup-test", name)
	}
	cmd := exec.Command(name, args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, said.String())
	}
	return string(out)
}

// tshark is the judge: it is what the files are for.
func TestTshark(t *testing.T) {
	path := file(t)
	got := run(t, "tshark", "-r", path, "-n", "-T", "fields", "-e", "frame.interface_name", "-e", "frame.interface_description", "-e", "frame.time_epoch",
		"-e", "frame.cap_len", "-e", "frame.len", "-e", "frame.comment", "-e", "frame.packet_flags_direction", "-e", "arp.dst.proto_ipv4")
	want := "from_vm\tas the VM sent it\t1764140000.123456789\t42\t42\t\t2\t10.17.34.85\n" +
		"drop\trefused\t1764140000.123463789\t41\t1514\tno_mapping: no PA is known\t\t\n"
	lines := strings.Split(got, "\n")
	for i, line := range strings.Split(want, "\n") {
		// A cut-off ARP request shows as much as there is.
		if !strings.HasPrefix(lines[i], line) && !strings.HasPrefix(strings.ReplaceAll(lines[i], "0x00000002", "2"), line) {
			t.Errorf("line %d:\ngot  %q\nwant %q", i+1, lines[i], line)
		}
	}
}

func TestCapinfos(t *testing.T) {
	got := run(t, "capinfos", file(t))
	for _, want := range []string{"Wireshark/... - pcapng", "Number of packets:   2", "port web-1 on h7", "Name = from_vm", "Number of interfaces in file: 2",
		"Time precision = nanoseconds", "Number of stat entries = 1", "Capture application: replug"} {
		if !strings.Contains(got, want) {
			t.Errorf("capinfos says nothing of %q:\n%s", want, got)
		}
	}
}
