package safetensors

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// file returns a file with a header and data.
func file(header string, data ...byte) []byte {
	return slices.Concat(binary.LittleEndian.AppendUint64(nil, uint64(len(header))), []byte(header), data)
}

func TestRoundTrip(t *testing.T) {
	for _, f := range []File{
		{},
		{Metadata: map[string]string{"a": "<b>", "é": ""}},
		{Tensors: []Tensor{
			{"wide", "F64", []int{2}, bytes.Repeat([]byte{1}, 16)},
			{"number", "I64", []int{}, bytes.Repeat([]byte{2}, 8)},
			{"<empty>", "F32", []int{3, 0}, []byte{}},
			{"narrow", "F32", []int{1, 3}, bytes.Repeat([]byte{3}, 12)},
		}},
	} {
		var b bytes.Buffer
		n, err := f.WriteTo(&b)
		require.NoError(t, err)
		assert.EqualValues(t, b.Len(), n)
		assert.Zero(t, binary.LittleEndian.Uint64(b.Bytes())%8, "the data is aligned")
		read, err := Parse(b.Bytes())
		require.NoError(t, err)
		assert.Equal(t, f.Metadata, read.Metadata)
		assert.ElementsMatch(t, f.Tensors, read.Tensors)
		for cut := range b.Len() {
			_, err := Parse(b.Bytes()[:cut])
			require.Error(t, err, "%d of %d bytes", cut, b.Len())
		}
		_, err = Parse(append(b.Bytes(), 0))
		require.Error(t, err)
	}
}

var refused = map[string][]byte{
	"8 bytes, expected a header of 9":              file("123456789")[:8],
	"a header of 100000001 bytes":                  binary.LittleEndian.AppendUint64(nil, 100_000_001),
	"not an object in JSON":                        file("[]"),
	"unexpected end of JSON input":                 file("{"),
	"\"x\" after the object":                       file("{}x"),
	"two members":                                  file(`{"__metadata__":{},"__metadata__":{}}`),
	"dtype \"F31\" is not known":                   file(`{"a":{"dtype":"F31","shape":[],"data_offsets":[0,4]}}`, 1, 2, 3, 4),
	"unknown field":                                file(`{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4],"x":1}}`, 1, 2, 3, 4),
	"shape [-1 -1]":                                file(`{"a":{"dtype":"F32","shape":[-1,-1],"data_offsets":[0,4]}}`, 1, 2, 3, 4),
	"shape [4611686018427387904 4]":                file(`{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}`),
	"offsets [0], expected 4 of 4 bytes":           file(`{"a":{"dtype":"F32","shape":[],"data_offsets":[0]}}`, 1, 2, 3, 4),
	"offsets [0 3], expected 4 of 4 bytes":         file(`{"a":{"dtype":"F32","shape":[],"data_offsets":[0,3]}}`, 1, 2, 3, 4),
	"offsets [4 8], expected 4 of 4 bytes":         file(`{"a":{"dtype":"F32","shape":[],"data_offsets":[4,8]}}`, 1, 2, 3, 4),
	"offsets [-4 0], expected 4 of 4 bytes":        file(`{"a":{"dtype":"F32","shape":[],"data_offsets":[-4,0]}}`, 1, 2, 3, 4),
	"a tensor begins at 1 of the data, expected 0": file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}`, 1, 2),
	"2 bytes of data, expected 1":                  file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1, 2),
	"a tensor begins at 0 of the data, expected 1": file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}`, 1),
	"cannot unmarshal number into Go value":        file(`{"a":{"dtype":1}}`),
	`"dtype": null`:                                file(`{"a":{"dtype":null,"shape":[],"data_offsets":[0,4]}}`, 1, 2, 3, 4),
	`"shape": null`:                                file(`{"a":{"dtype":"F32","shape":null,"data_offsets":[0,4]}}`, 1, 2, 3, 4),
	`"shape": null in a list`:                      file(`{"a":{"dtype":"F32","shape":[null],"data_offsets":[0,0]}}`),
	`no data_offsets`:                              file(`{"a":{"dtype":"F32","shape":[]}}`, 1, 2, 3, 4),
	`two members "shape"`:                          file(`{"a":{"dtype":"F32","shape":[2],"shape":[1],"data_offsets":[0,4]}}`, 1, 2, 3, 4),
	`"Shape": unknown field`:                       file(`{"a":{"dtype":"F32","Shape":[1],"data_offsets":[0,4]}}`, 1, 2, 3, 4),
	`"__metadata__": "a": null`:                    file(`{"__metadata__":{"a":null}}`),
	`"__metadata__": two members "a"`:              file(`{"__metadata__":{"a":"","a":""}}`),
	`"__metadata__": not an object in JSON`:        file(`{"__metadata__":null}`),
}

func TestRefuses(t *testing.T) {
	for says, bad := range refused {
		_, err := Parse(bad)
		require.ErrorContains(t, err, says)
	}
	for says, f := range map[string]File{
		`tensor "a": 3 bytes, expected 4`: {Tensors: []Tensor{{"a", "F32", nil, make([]byte, 3)}}},
		`two tensors "a"`:                 {Tensors: []Tensor{{"a", "U8", []int{1}, []byte{1}}, {"a", "F32", []int{0}, nil}}},
		`two tensors "__metadata__"`:      {Tensors: []Tensor{{"__metadata__", "U8", []int{1}, []byte{1}}}},
		"is not UTF-8":                    {Tensors: []Tensor{{"\xff", "U8", []int{1}, []byte{1}}}},
		`dtype "F31"`:                     {Tensors: []Tensor{{"a", "F31", nil, nil}}},
	} {
		_, err := f.WriteTo(new(bytes.Buffer))
		require.ErrorContains(t, err, says)
	}
}

// FuzzParse checks that what Parse accepts survives a round trip.
func FuzzParse(f *testing.F) {
	for _, bad := range refused {
		f.Add(bad)
	}
	f.Add(file(`{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"__metadata__":{"k":"v"}} `, 7))
	f.Fuzz(func(t *testing.T, b []byte) {
		read, err := Parse(b)
		if err != nil {
			return
		}
		var again bytes.Buffer
		_, err = read.WriteTo(&again)
		require.NoError(t, err)
		second, err := Parse(again.Bytes())
		require.NoError(t, err)
		require.ElementsMatch(t, names(read), names(second))
	})
}

func names(f *File) (all []string) {
	for _, t := range f.Tensors {
		all = append(all, t.Name+string(t.Data))
	}
	return all
}
