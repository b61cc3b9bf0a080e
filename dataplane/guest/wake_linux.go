package guest

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"replug/directory/vnet"
)

// wake renews what stood still while the machine was a saved state: the clock, by the
// hardware's, and the kernel's random numbers. Before Linux 5.18 nobody tells the
// kernel of the latter (vmgenid).
func (m machine) wake(w *vnet.Woken) error {
	if w == nil || m.root != "/" {
		return nil
	}
	return errors.Join(setClock(), reseed(w.Seed))
}

// hardwareClock is in UTC in a VM of ours, and can be read without a driver's lock.
const hardwareClock = "/sys/class/rtc/rtc0/since_epoch"

func setClock() error {
	b, err := os.ReadFile(hardwareClock)
	if err != nil {
		return fmt.Errorf("set the clock: %w (it is as late as the machine slept, until time synchronisation sets it)", err)
	}
	at, late, err := lateBy(time.Now(), string(b))
	if err != nil || !late {
		return err
	}
	tv := unix.NsecToTimeval(at.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return fmt.Errorf("set the clock to %s: %w", at.UTC(), err)
	}
	return nil
}

// lateBy reads the hardware's clock and reports whether the system's is behind. It is
// never set back, and not for less than the hardware's tells: whole seconds.
func lateBy(now time.Time, hardware string) (at time.Time, late bool, err error) {
	s, err := strconv.ParseInt(strings.TrimSpace(hardware), 10, 64)
	if err != nil {
		return at, false, fmt.Errorf("set the clock: %s says %.20q", hardwareClock, hardware)
	}
	at = time.Unix(s, 0)
	return at, at.Sub(now) >= time.Second, nil
}

// reseed mixes a seed into the kernel's random numbers (random(4)), at once.
func reseed(seed []byte) error {
	const now = 0x5207 // RNDRESEEDCRNG, include/uapi/linux/random.h
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("reseed the random numbers: %w", err)
	}
	defer f.Close()
	if _, err := f.Write(seed); err != nil {
		return fmt.Errorf("reseed the random numbers: %w", err)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), now, 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTTY) { // before Linux 4.17
		return fmt.Errorf("reseed the random numbers: %w", err)
	}
	return nil
}
