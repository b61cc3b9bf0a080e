package compute

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"replug/directory/vnet"
)

// The host offers what it can use, with what image.json says of it; an image whose
// personality can't be read is not offered, since its guests would wait for ever.
func TestImages(t *testing.T) {
	q := &QEMU{c: Config{Images: t.TempDir(), Log: slog.New(slog.DiscardHandler)}}
	for name, about := range map[string]string{
		"tiny": "", "debian": `{"personality": "cloud-init"}`, "appliance": `{"personality": "plain"}`, "agent": `{}`,
		"typo": `{"personality": "cloudinit"}`, "unknown": `{"personalty": "plain"}`, "broken": `{`,
	} {
		dir := filepath.Join(q.c.Images, name)
		check(t, os.Mkdir(dir, 0o755))
		check(t, os.WriteFile(filepath.Join(dir, "vmlinuz"), nil, 0o644))
		if about != "" {
			check(t, os.WriteFile(filepath.Join(dir, "image.json"), []byte(about), 0o644))
		}
	}
	got, err := q.Images()
	check(t, err)
	want := []Image{{"agent", ""}, {"appliance", vnet.PersonalityPlain}, {"debian", vnet.PersonalityCloudInit}, {"tiny", ""}}
	if !slices.Equal(got, want) {
		t.Errorf("offered %v, want %v", got, want)
	}
}
