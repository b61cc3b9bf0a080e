package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// liar takes the place of replug-guest in a VM: it asks for no lease, and as soon as it
// is told that its network has changed it reports success, over the second channel: of
// this place, twice, the one before, and the one after, as either kind. When it is refused
// it says so again, faster than anybody is listened to.
const liar = `#!/bin/sh
echo $$ >/tmp/liar.pid
port=$(grep -l org.replug.guest.0 /sys/class/virtio-ports/*/name)
port=${port%/name}
exec 3<>/dev/${port##*/}
hello() { echo '{"hello":"liar"}' >&3; }
ready() { echo "{\"report\":{\"epoch\":\"$1\",\"kind\":\"$2\",\"ok\":true,\"hostname\":\"liar\"}}" >&3; }
hello
while read -r line <&3; do
	echo "$line" >>/tmp/heard
	case $line in
	*'"ping"'*) hello ;;
	*'"moved"'*)
		at=${line#*'"epoch":"'}; at=${at%%'"'*}; n=${at#*.}
		for e in $n $n $((n-1)) $((n+1)); do ready "${at%.*}.$e" final; ready "${at%.*}.$e" partial; done
		echo "$at" >/tmp/lied ;;
	*'"answer"'*)
		n=0; while [ $n -lt 90 ]; do ready "$at" final; n=$((n+1)); done ;;
	esac
done
`

// A guest that says over the second channel that it is ready, and has never been seen on
// its new address, is not believed: its swap is undone, and the receipt says why. When
// its own agent is there again, the same swap is made (issue 4, point 9).
func TestLiarOverTheChannel(t *testing.T) {
	w := shared
	// Its own agent asks for the address that the guest has already. It listens below UDP,
	// so the kernel tells the DHCP server that nobody is at the port.
	ctx := w.within(t, "imds_other")
	vm := w.machine(ctx, t, "red")
	in := func(script string) string {
		t.Helper()
		out, err := lab.GuestExec(ctx, filepath.Join(w.Lab.Host(1).Dir(), "state/vms", vm.Id, "exec.sock"), script)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	in(": >/tmp/heard; cat >/tmp/liar <<'END'\n" + liar + "END\nchmod 755 /tmp/liar; mv /bin/replug-guest /tmp/honest; cp /tmp/liar /bin/replug-guest; kill $(pidof replug-guest)")
	if err := lab.Until(ctx, "the liar to be spoken to", func() error {
		if said := in("cat /tmp/heard"); !strings.Contains(said, `"to":"liar"`) {
			return fmt.Errorf("it has heard %q", said)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	before := w.lies(ctx, t)
	request := func() *pb.StartSwapRequest {
		return &pb.StartSwapRequest{RequestId: w.id(), Tenant: tenant, Vm: vm.Name, Network: "blue", Confirm: "guest"}
	}
	swap := func(r *pb.StartSwapRequest, want string) *pb.Swap {
		t.Helper()
		s, err := pb.NewSwapsClient(w.conn).StartSwap(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		return w.ends(ctx, t, s.Id, want)
	}
	short := request()
	short.LeaseBudget = durationpb.New(4 * time.Second)
	s := swap(short, "undone")
	said, heard := hops(s), in("cat /tmp/lied /tmp/heard")
	t.Logf("%s: %v", s.Error, said)
	if !strings.Contains(s.Error, "was not seen at blue") || !slices.Contains(said, "host/no proof by agent") {
		t.Errorf("the receipt does not say why: %q, %v", s.Error, said)
	}
	for _, never := range []string{"host/seen", "host/publish", "host/report", "server/leased", "server/published", "server/confirmed"} {
		if i := slices.Index(said, never); i >= 0 && i < slices.Index(said, "server/undoing") {
			t.Errorf("%s before it was undone: %v", never, said)
		}
	}
	if !strings.HasPrefix(heard, s.After.Epoch+"\n") || !strings.Contains(heard, "report on another epoch") {
		t.Errorf("the lies were not told or not refused: %s", heard)
	}
	after := w.lies(ctx, t)
	for i, least := range []float64{8, 1} {
		if got := after[i] - before[i]; got < least {
			t.Errorf("%s: %v were counted, want at least %v", refusals[i], got, least)
		}
	}
	opened := func() int {
		t.Helper()
		said, err := os.ReadFile(filepath.Join(w.Lab.Host(1).Dir(), "state/vms", vm.Id, "console.log"))
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Count(said, []byte("second channel is open"))
	}
	was := opened()
	in("mv /tmp/honest /bin/replug-guest; kill $(cat /tmp/liar.pid)")
	if err := lab.Until(ctx, "its own agent to be spoken to", func() error {
		if opened() == was {
			return errors.New("it has not heard its host")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	swap(request(), "committed")
}

// refusals are how a lie ends.
var refusals = []string{`replug_imds_refused_total{reason="channel: report on another epoch"}`, `replug_imds_refused_total{reason="channel: too many messages"}`}

func (w *world) lies(ctx context.Context, t *testing.T) (counted []float64) {
	t.Helper()
	all := metrics(ctx, t, w.Lab.Host(1), 9417)
	for _, name := range refusals {
		counted = append(counted, all[name])
	}
	return counted
}

// machine boots a small VM of the cluster's own, on host 1, and deletes it when the test ends.
func (w *world) machine(ctx context.Context, t *testing.T, network string) *pb.VM {
	t.Helper()
	_, err := pb.NewVMTypesClient(w.conn).CreateVMType(ctx, &pb.CreateVMTypeRequest{RequestId: w.id(),
		Type: &pb.VMType{Name: kind, Image: cluster.Image, Cpus: 1, MemoryMib: 128}})
	if err != nil && status.Code(err) != codes.AlreadyExists {
		t.Fatal(err)
	}
	client := pb.NewVMsClient(w.conn)
	get := &pb.GetVMRequest{Tenant: tenant, Name: fmt.Sprint("vm", w.used.Add(1))}
	vm, err := client.CreateVM(ctx, &pb.CreateVMRequest{RequestId: w.id(), Tenant: tenant, Name: get.Name, Type: kind, Network: network, Ip: w.ip()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, err := client.DeleteVM(ctx, &pb.DeleteVMRequest{RequestId: w.id(), Tenant: tenant, Name: get.Name})
		if err == nil {
			err = lab.Until(ctx, "the end of "+get.Name, func() error {
				if _, err := client.GetVM(ctx, get); status.Code(err) != codes.NotFound {
					return fmt.Errorf("it is there: %w", err)
				}
				return nil
			})
		}
		if err != nil {
			t.Error(err)
		}
	})
	if err := lab.Until(ctx, get.Name+" to be ready", func() error {
		if vm, err = client.GetVM(ctx, get); err != nil || vm.Phase != "ready" {
			return fmt.Errorf("it is %s %s: %w", vm.GetPhase(), vm.GetError(), err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return vm
}
